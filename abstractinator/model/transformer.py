"""Causal transformer blocks, over whole rows or id by id with a cache.

`Stack` is a stack of self-attention blocks. The expander owns blocks with
cross-attention to codes and calls `run_blocks`, `prefill_blocks` and
`step_blocks` itself; the norm after the last block belongs to the caller. All
blocks of one call have the same window.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.config import ExpanderConfig, StackConfig
from abstractinator.model import layers
from abstractinator.model.attention import FORMS, Attention, CodeKeyValues
from abstractinator.ops import cache as cache_lib
from abstractinator.ops.cache import Cache, CacheStep, KeyValues
from abstractinator.ops.implementation import Implementations
from abstractinator.ops.shards import by_rows
from abstractinator.types import Array


class CodeMemory(NamedTuple):
  """Codes of segments, and the segments that each id attends to.

  Attributes:
    vectors_BUD: Vectors of the codes, [B, U, width].
    index_BS: Segment of each id, [B, S] int32.
    lowest_BS: First segment that the id may see, [B, S] int32.
  """

  vectors_BUD: Array
  index_BS: Array
  lowest_BS: Array


class StepCodes(NamedTuple):
  """Projected codes of segments, and the segments that the ids of a step see.

  The rows of codes may be fewer than the B rows of ids: R x T = B, where each
  row of codes serves T consecutive rows of ids.

  Attributes:
    key_values: Keys and values of the codes for each block.
    index_RT: Segment of each id, [R, T] int32.
    lowest_RT: First segment that the id may see, [R, T] int32.
  """

  key_values: Sequence[CodeKeyValues]
  index_RT: Array
  lowest_RT: Array


class TransformerBlock(nn.Module):
  """Pre-norm block: self-attention, cross-attention if any, feed-forward.

  Each of them is x <- x + layer(RMSNorm(x)). Cross-attention in which an id
  sees one code depends on no query, and so has no norm.

  Attributes:
    config: Heads, widths and form of attention, and the number of blocks.
    d_model: Width of the residual stream, D.
    window: Number of ids before itself that an id sees; None for all.
    implementation: Names of the implementations of the ops.
    dtype: Type of activations and matrix products; parameters are float32.
    has_cross: Whether there is cross-attention to codes.
    lookback: Number of segments before its own whose codes an id sees.
    rows_per_slot: Codes of a segment.
  """

  config: StackConfig | ExpanderConfig
  d_model: int
  window: int | None
  implementation: Implementations
  dtype: jnp.dtype
  has_cross: bool = False
  lookback: int = 0
  rows_per_slot: int = 1

  def setup(self) -> None:
    self.attention_norm = layers.RMSNorm(self.dtype)
    self.attention = self._attention()
    if self.has_cross:
      self.cross_norm = layers.RMSNorm(self.dtype)
      self.cross = self._attention()
    self.ffn_norm = layers.RMSNorm(self.dtype)
    self.ffn = layers.SwiGLU(
      self.config.ffn_dim, self.config.num_layers, self.dtype
    )

  def _attention(self) -> Attention:
    c = self.config
    return FORMS[c.attention.form](
      d_model=self.d_model,
      num_heads=c.num_heads,
      head_dim=self.d_model // c.num_heads,
      depth=c.num_layers,
      config=c.attention,
      implementation=self.implementation,
      dtype=self.dtype,
    )

  def __call__(
    self, x_BSD: Array, group_BS: Array, memory: CodeMemory | None = None
  ) -> tuple[Array, tuple[Array, Array]]:
    """Applies the block to whole rows.

    Args:
      x_BSD: Residual stream, [B, S, D].
      group_BS: Group of each id, [B, S] int32; see `ops.attention`.
      memory: Codes to attend to, for a block with cross-attention.

    Returns:
      [B, S, D], and the keys and values of the self-attention by position.
    """
    out, key_values = self.attention(
      self.attention_norm(x_BSD), group_BS, window=self.window
    )
    x_BSD += out
    if memory is not None:
      x_BSD += self._cross(
        x_BSD,
        self.remember(memory.vectors_BUD),
        memory.index_BS,
        memory.lowest_BS,
      )
    return x_BSD + self.ffn(self.ffn_norm(x_BSD)), key_values

  def remember(self, memory_BUD: Array) -> CodeKeyValues:
    """Computes what `step` reads of codes [B, U, width], once for all steps."""
    return self.cross.remember(
      memory_BUD, lookback=self.lookback, rows_per_slot=self.rows_per_slot
    )

  def step(
    self,
    x_BD: Array,
    layer: KeyValues,
    step: CacheStep,
    codes: tuple[CodeKeyValues, Array, Array] | None = None,
  ) -> tuple[Array, KeyValues]:
    """Applies the block to one id per row.

    Args:
      x_BD: Residual stream, [B, D].
      layer: Keys and values of this block, by slot of the cache.
      step: Slots and visible ids of the step, from `ops.cache.advance`.
      codes: Keys and values from `remember` and the segments that ids see,
        [R, T] each as in `StepCodes`, for a block with cross-attention.

    Returns:
      [B, D], and `layer` with the new keys and values.
    """
    out, layer = self.attention.step(self.attention_norm(x_BD), layer, step)
    x_BD += out
    if codes is not None:
      rows_RTD = x_BD.reshape(*codes[1].shape, -1)
      x_BD += self._cross(rows_RTD, *codes).reshape(x_BD.shape)
    return x_BD + self.ffn(self.ffn_norm(x_BD)), layer

  def _cross(
    self,
    x_BTD: Array,
    key_values: CodeKeyValues,
    index_BT: Array,
    lowest_BT: Array,
  ) -> Array:
    if key_values[0] is not None:
      x_BTD = self.cross_norm(x_BTD)
    return self.cross.cross(
      x_BTD,
      key_values,
      index_BT,
      lowest_BT,
      lookback=self.lookback,
      rows_per_slot=self.rows_per_slot,
    )


def make_blocks(
  config: StackConfig | ExpanderConfig,
  d_model: int,
  window: int | None,
  implementation: Implementations,
  dtype: jnp.dtype,
  *,
  has_cross: bool = False,
  lookback: int = 0,
  rows_per_slot: int = 1,
) -> list[TransformerBlock]:
  """Builds `config.num_layers` blocks, named `block_0` and so on.

  The arguments are the attributes of `TransformerBlock`. The module that owns
  the blocks calls this in its `setup`.
  """
  return [
    TransformerBlock(
      config,
      d_model,
      window,
      implementation,
      dtype,
      has_cross=has_cross,
      lookback=lookback,
      rows_per_slot=rows_per_slot,
      name=f'block_{i}',
    )
    for i in range(config.num_layers)
  ]


def empty_cache(
  config: StackConfig | ExpanderConfig,
  d_model: int,
  window: int | None,
  batch_size: int,
  capacity: int,
  dtype: jnp.dtype,
) -> Cache:
  """Builds the empty cache of the blocks of `make_blocks`.

  Args:
    config: Heads, widths and form of attention, and the number of blocks.
    d_model: Width of the residual stream, D.
    window: Number of ids before itself that an id sees; None for all.
    batch_size: Number of rows, B.
    capacity: Most ids that a row may come to, if there is no window. With a
      window the cache holds the last window + 1 ids and has no end.
    dtype: Type of keys and values, usually the compute type.

  Returns:
    The cache.
  """
  widths = FORMS[config.attention.form].cached_widths(
    config.num_heads, d_model // config.num_heads, config.attention
  )
  slots = capacity if window is None else window + 1
  return cache_lib.empty_cache(
    batch_size, slots, widths, config.num_layers, dtype
  )


# By `implementation.remat`: what a block keeps for the backward pass, its input
# alone or the results of matrix products with parameters as well.
_POLICIES = {
  'blocks': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def run_blocks(
  blocks: Sequence[TransformerBlock],
  x_BSD: Array,
  group_BS: Array,
  memory: CodeMemory | None = None,
) -> tuple[Array, list[tuple[Array, Array]]]:
  """Applies blocks to whole rows, one block after the other.

  `Implementations.remat` says what is kept for the backward pass, and
  `scan_layers` whether the blocks are compiled once for all of them; parameters
  do not depend on either.

  Args:
    blocks: Blocks of one stack.
    x_BSD: Vectors of the ids, [B, S, D].
    group_BS: Group of each id, [B, S] int32; see `ops.attention`.
    memory: Codes to attend to, for blocks with cross-attention.

  Returns:
    [B, S, D], and the keys and values of each block by position.
  """
  x_BSD = by_rows(x_BSD)
  how = blocks[0].implementation
  # Parameters have to be there, one by one, before they can be scanned.
  if how.scan_layers and len(blocks) > 1 and not blocks[0].is_initializing():
    return _scan(blocks, x_BSD, group_BS, memory)
  call = _call
  if how.remat != 'none':
    call = nn.remat(_call, policy=_POLICIES[how.remat])
  key_values = []
  for block in blocks:
    x_BSD, of_block = call(block, x_BSD, group_BS, memory)
    key_values.append(of_block)
  return x_BSD, key_values


def _call(
  block: Callable[..., tuple[Array, tuple[Array, Array]]],
  x_BSD: Array,
  group_BS: Array,
  memory: CodeMemory | None,
) -> tuple[Array, tuple[Array, Array]]:
  x_BSD, key_values = block(x_BSD, group_BS, memory)
  return by_rows(x_BSD), key_values


def _scan(
  blocks: Sequence[TransformerBlock],
  x_BSD: Array,
  group_BS: Array,
  memory: CodeMemory | None,
) -> tuple[Array, list[tuple[Array, Array]]]:
  """Applies blocks as a loop over stacked copies of their parameters."""
  # Outside of the model: a module in it may not be called in a loop of jax.
  block = blocks[0].clone(parent=None, name=None)

  def call(x_BSD: Array, params: dict) -> tuple[Array, tuple[Array, Array]]:
    def apply(*args):
      return block.apply({'params': params}, *args)

    return _call(apply, x_BSD, group_BS, memory)

  remat = blocks[0].implementation.remat
  if remat != 'none':
    # In a loop there is nothing to merge what is computed twice with.
    call = jax.checkpoint(call, policy=_POLICIES[remat], prevent_cse=False)
  params = [block.variables['params'] for block in blocks]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
  x_BSD, key_values = lax.scan(call, x_BSD, stacked)
  return x_BSD, [
    jax.tree.map(lambda x, i=i: x[i], key_values) for i in range(len(blocks))
  ]


def prefill_blocks(
  blocks: Sequence[TransformerBlock],
  x_BSD: Array,
  group_BS: Array,
  cache: Cache,
  memory: CodeMemory | None = None,
) -> tuple[Array, Cache]:
  """Applies blocks to whole rows and stores them in a cache for steps.

  Args:
    blocks: Blocks of one stack, one for each layer of the cache.
    x_BSD: Vectors of the ids, [B, S, D].
    group_BS: Group of each id, [B, S] int32; -1 on padding, which only ends a
      row.
    cache: Cache from `empty_cache`; its content is replaced.
    memory: Codes to attend to, for blocks with cross-attention.

  Returns:
    [B, S, D], and the cache after the last id of each row.

  Raises:
    ValueError: If there is no window and rows are longer than the cache.
  """
  slots = cache.group_BW.shape[1]
  if blocks[0].window is None and x_BSD.shape[1] > slots:
    raise ValueError(
      f'rows of {x_BSD.shape[1]} ids, allowed: the capacity of the cache'
      f' ({slots})'
    )
  x_BSD, key_values = run_blocks(blocks, x_BSD, group_BS, memory)
  return x_BSD, cache_lib.fill(cache, key_values, group_BS)


def step_blocks(
  blocks: Sequence[TransformerBlock],
  x_BD: Array,
  group_B: Array,
  cache: Cache,
  active_B: Array,
  codes: StepCodes | None = None,
) -> tuple[Array, Cache]:
  """Applies blocks to the next id of each row.

  Args:
    blocks: Blocks of one stack, one for each layer of the cache.
    x_BD: Vectors of the ids, [B, D].
    group_B: Group of each id, [B] int32; it sees earlier ids of the same group.
    cache: Cache after the ids before.
    active_B: True for rows that have an id, [B] bool. In other rows the cache
      stays as it is and the result is meaningless.
    codes: Codes to attend to, for blocks with cross-attention.

  Returns:
    [B, D], NaN for an id beyond the capacity of blocks without window, and the
    cache.
  """
  is_beyond_B = cache.length_B >= cache.group_BW.shape[1]
  cache, place = cache_lib.advance(cache, group_B, active_B)
  key_values = []
  for i, (block, layer) in enumerate(zip(blocks, cache.layers, strict=True)):
    of_block = codes and (codes[0][i], *codes[1:])
    x_BD, layer = block.step(x_BD, layer, place, of_block)
    key_values.append(layer)
  if blocks[0].window is None:
    # The length is known when the program runs: NaN is an error that shows.
    x_BD = jnp.where((is_beyond_B & active_B)[:, None], jnp.nan, x_BD)
  return x_BD, dataclasses.replace(cache, layers=tuple(key_values))


class Stack(nn.Module):
  """Causal self-attention blocks, and a norm after the last.

  Attributes:
    config: Number of blocks, heads, widths, window and form of attention.
    d_model: Width of the vectors, D.
    implementation: Names of the implementations of the ops.
    dtype: Type of activations and matrix products; parameters are float32.
  """

  config: StackConfig
  d_model: int
  implementation: Implementations
  dtype: jnp.dtype

  def setup(self) -> None:
    self.blocks = make_blocks(
      self.config,
      self.d_model,
      self.config.window,
      self.implementation,
      self.dtype,
    )
    self.norm = layers.RMSNorm(self.dtype)

  def __call__(self, x_BSD: Array, group_BS: Array) -> Array:
    """Maps rows, [B, S, D] to [B, S, D]; no id sees one of another group."""
    return self.norm(run_blocks(self.blocks, x_BSD, group_BS)[0])

  @nn.nowrap
  def init_cache(
    self, batch_size: int, capacity: int, dtype: jnp.dtype
  ) -> Cache:
    """Builds the empty cache of this stack; see `empty_cache`.

    Args:
      batch_size: Number of rows, B.
      capacity: Most ids that a row may come to, if there is no window.
      dtype: Type of keys and values, usually the compute type.

    Returns:
      The cache. No parameters are needed.
    """
    return empty_cache(
      self.config, self.d_model, self.config.window, batch_size, capacity, dtype
    )

  def prefill(
    self, x_BSD: Array, group_BS: Array, cache: Cache
  ) -> tuple[Array, Cache]:
    """Maps rows as the call does, and stores them in a cache for `step`.

    Args:
      x_BSD: Vectors of the ids, [B, S, D].
      group_BS: Group of each id, [B, S] int32; -1 on padding, which only ends a
        row.
      cache: Cache from `init_cache`; its content is replaced.

    Returns:
      [B, S, D], and the cache after the last id of each row.

    Raises:
      ValueError: If there is no window and rows are longer than the cache.
    """
    x_BSD, cache = prefill_blocks(self.blocks, x_BSD, group_BS, cache)
    return self.norm(x_BSD), cache

  def step(
    self, x_BD: Array, group_B: Array, cache: Cache, active_B: Array
  ) -> tuple[Array, Cache]:
    """Maps the next id of each row; see `step_blocks` for the arguments."""
    x_BD, cache = step_blocks(self.blocks, x_BD, group_B, cache, active_B)
    return self.norm(x_BD), cache
