"""Blocks one after the other: over whole rows, or id by id with a cache.

What calls these owns the blocks, which all have the same window, and the norm
after the last.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from abstractinator.modules.attention import Remembered
from abstractinator.ops import cache as cache_lib
from abstractinator.ops.cache import Cache
from abstractinator.ops.shards import by_rows
from abstractinator.types import Array

# See `Block`: of whole rows, and of steps, with what each block remembers.
Memory = tuple[Array, Array, Array]
StepMemory = tuple[Sequence[Remembered], Array, Array]

# What a block keeps for the backward pass: its input, or the results of matrix
# products with parameters as well.
_POLICIES = {
  'blocks': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def forward(
  blocks: Sequence[nn.Module],
  x_BSD: Array,
  group_BS: Array,
  memory: Memory | None = None,
) -> tuple[Array, list[tuple[Array, Array]]]:
  """[B, S, D] to [B, S, D], and keys and values of each block by position.

  What the backward pass keeps, and whether blocks are compiled once for all of
  them, is said by `Implementations`; parameters are the same ones.
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


def _call(block, x_BSD, group_BS, memory):
  x_BSD, key_values = block(x_BSD, group_BS, memory=memory)
  return by_rows(x_BSD), key_values


def _scan(blocks, x_BSD, group_BS, memory):
  """`forward` as a loop over stacked copies of the parameters."""
  # Outside of the model: a module in it may not be called in a loop of jax.
  block = blocks[0].clone(parent=None, name=None)

  def call(x_BSD, params):
    x_BSD, key_values = block.apply(
      {'params': params}, x_BSD, group_BS, memory=memory
    )
    return by_rows(x_BSD), key_values

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


def prefill(
  blocks: Sequence[nn.Module],
  x_BSD: Array,
  group_BS: Array,
  cache: Cache,
  memory: Memory | None = None,
) -> tuple[Array, Cache]:
  """The same, remembering every row for `step`.

  Args:
    blocks: One for each layer of the cache.
    x_BSD: [B, S, D].
    group_BS: [B, S] int32, -1 on padding, which only ends a row.
    cache: Of the blocks; what else it held is gone.
    memory: See `Block`.

  Returns:
    [B, S, D], and the cache, in which each row has as many ids as it has.

  Raises:
    ValueError: If there is no window and rows are longer than the cache.
  """
  slots = cache.group_BW.shape[1]
  if blocks[0].window is None and x_BSD.shape[1] > slots:
    raise ValueError(
      f'rows of {x_BSD.shape[1]} ids, allowed: the capacity of the cache'
      f' ({slots})'
    )
  x_BSD, key_values = forward(blocks, x_BSD, group_BS, memory)
  return x_BSD, cache_lib.fill(cache, key_values, group_BS)


def step(
  blocks: Sequence[nn.Module],
  x_BD: Array,
  group_B: Array,
  cache: Cache,
  active_B: Array,
  memory: StepMemory | None = None,
) -> tuple[Array, Cache]:
  """The next id of each row.

  Args:
    blocks: One for each layer of the cache.
    x_BD: [B, D].
    group_B: [B] int32, group of the id; it sees earlier ids of the same.
    cache: Of the blocks, after the ids before.
    active_B: [B] bool, rows that have an id. Of the others the cache stays as
      it is and the output means nothing.
    memory: What each block remembers, and the indices; see `Block.step`.

  Returns:
    [B, D], NaN for an id beyond the capacity of blocks without window, and the
    cache.
  """
  is_beyond_B = cache.length_B >= cache.group_BW.shape[1]
  cache, place = cache_lib.advance(cache, group_B, active_B)
  key_values = []
  for i, (block, layer) in enumerate(zip(blocks, cache.layers, strict=True)):
    of_block = memory and (memory[0][i], *memory[1:])
    x_BD, layer = block.step(x_BD, layer, place, memory=of_block)
    key_values.append(layer)
  if blocks[0].window is None:
    # Sizes are not known to the compiler: say it where nobody can miss it.
    x_BD = jnp.where((is_beyond_B & active_B)[:, None], jnp.nan, x_BD)
  return x_BD, cache.replace(layers=tuple(key_values))
