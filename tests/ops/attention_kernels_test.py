"""Kernels of attention, interpreted, held against the dense form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from abstractinator.ops.attention import (
  attention,
  cudnn,
  pallas_mosaic_gpu,
  pallas_tpu,
  pallas_triton,
  reference,
)
from tests.helpers.jitted import jit
from tests.helpers.lowering import lowered
from tests.ops.conftest import TOLERANCES, assert_close

# Kernels are interpreted unless the tests run on their own platform.
PLATFORM = jax.default_backend()
KERNELS = {
  'tpu': functools.partial(pallas_tpu.attention, interpret=PLATFORM != 'tpu'),
  'triton': functools.partial(
    pallas_triton.attention, interpret=PLATFORM != 'gpu'
  ),
  'mosaic_gpu': functools.partial(
    pallas_mosaic_gpu.attention,
    interpret=PLATFORM != 'gpu'
    and InterpretGPUParams(
      detect_races=True,
      # With fewer, a wait for one copy would stand for waits for others.
      num_tma_threads_per_device=32,
      uninitialized_memory='nan',
    ),
  ),
  # Without a GPU, XLA computes in place of cuDNN.
  'cudnn': functools.partial(
    cudnn.attention, implementation='cudnn' if PLATFORM == 'gpu' else 'xla'
  ),
}
# The units that multiply matrices take no float32, unlike the interpreter.
NO_FLOAT32 = ('cudnn', 'mosaic_gpu') if PLATFORM == 'gpu' else ('cudnn',)
SIZE = 290
# Values and gradients in bfloat16, relative to the largest number of the
# reference. With sums in bfloat16, gradients would be off by 8e-3; with a
# window off by one, values by 2e-2.
BFLOAT16 = 4e-3, 5e-3


@dataclasses.dataclass(frozen=True)
class AttentionCase:
  """Sizes of a call, with heads and widths of queries or keys, and of values.

  Attributes:
    window: Number of ids before itself that an id sees; None for all.
    heads: Heads of queries, of keys and of values.
    widths: Width of a key and of a value.
    size: Number of ids of a row.
    in_steps: Whether a program for TPU meets one block per step.
    kinds: Kinds of rows, see `make_groups`; empty for all.
  """

  window: int | None
  heads: tuple[int, int, int] = (2, 2, 2)
  widths: tuple[int, int] = (6, 4)
  size: int = SIZE
  in_steps: bool = False
  kinds: tuple[str, ...] = ()


# Kinds of rows for an interpreter that takes a tenth of a second for a block.
FEW = 'padded', 'mixed'
# By platform: blocks of ids are of 128 on TPU, and of 64 on GPU.
CASES = {
  'tpu': {
    'itself': AttentionCase(0),
    'to the end of a block': AttentionCase(127),
    'beyond a block': AttentionCase(129, (2, 2, 1)),
    'beyond the row': AttentionCase(500, (2, 1, 1), (32, 64)),
    'no window': AttentionCase(None, (2, 1, 2)),
    'short row': AttentionCase(3, size=5),
    'in steps': AttentionCase(200, (2, 2, 1), in_steps=True),
    'no window, in steps': AttentionCase(None, in_steps=True),
  },
  'triton': {
    'itself': AttentionCase(0),
    'to the end of a block': AttentionCase(63),
    'beyond a block': AttentionCase(65, (2, 2, 1)),
    'beyond the row': AttentionCase(500, (2, 1, 1), (32, 24)),
    'wide': AttentionCase(33, (1, 1, 1), (100, 128)),
    'no window': AttentionCase(None, (2, 1, 2)),
    'short row': AttentionCase(3, size=5),
  },
  'mosaic_gpu': {
    'holes': AttentionCase(65, (2, 2, 1), size=130, kinds=('holes',)),
    'itself': AttentionCase(0, size=70, kinds=FEW),
    'one more': AttentionCase(1, (1, 1, 1), size=70, kinds=FEW),
    'to the end of a block': AttentionCase(63, size=130, kinds=FEW),
    'beyond a block': AttentionCase(65, (2, 2, 1), size=200, kinds=FEW),
    'beyond the row': AttentionCase(500, (2, 1, 1), (32, 24), 140, kinds=FEW),
    'wide': AttentionCase(33, (1, 1, 1), (100, 128), 70, kinds=FEW),
    'no window': AttentionCase(None, (2, 1, 2), size=200, kinds=FEW),
    'short row': AttentionCase(3, size=5),
  },
  'cudnn': {
    'beyond a block': AttentionCase(129, (2, 2, 1)),
    'odd row': AttentionCase(30, size=71),
  },
}
# Steps are also tested without a window, and in bfloat16; a window beyond the
# row is none. Mosaic GPU shares its arithmetic with Triton, and its interpreter
# is slow.
AT_NIGHT = [
  ('tpu', 'in steps'),
  ('tpu', 'to the end of a block'),
  ('triton', 'to the end of a block'),
  ('triton', 'beyond the row'),
  # On TPU, each has a case in every run.
  ('triton', 'itself'),
  ('triton', 'short row'),
  *(('mosaic_gpu', name) for name in CASES['mosaic_gpu'] if name != 'holes'),
]
night = functools.partial(pytest.param, marks=pytest.mark.nightly)
EACH = [
  night(platform, name) if (platform, name) in AT_NIGHT else (platform, name)
  for platform, cases in CASES.items()
  for name in cases
  if platform not in NO_FLOAT32
]


def make_groups(size, kinds=()):
  """[B, S] groups, a row for each way in which ids may fall into groups."""
  rng = np.random.default_rng(0)
  position = np.arange(size)
  documents = np.cumsum(rng.random(size) < 0.03)
  segments = np.cumsum(rng.random(size) < 0.3)
  rows = {
    'one': np.zeros(size),
    'documents': documents,
    'segments': segments,
    'single ids': position,
    'padded': np.where(position < size * 2 // 3, documents, -1),
    'only padding': np.full(size, -1),
    'one real id': np.where(position == size // 2, 7, -1),
    'holes': np.where(rng.random(size) < 0.3, -1, documents),
    'decreasing': documents[::-1],
    'mixed': rng.integers(-1, 3, size),
  }
  return np.stack([rows[kind] for kind in kinds or rows]).astype(np.int32)


def make_inputs(case, seed=0):
  rng = np.random.default_rng(seed)
  rows = len(make_groups(case.size, case.kinds))
  heads, key_heads, value_heads = case.heads
  of_keys, of_values = case.widths
  return tuple(
    rng.normal(size=(rows, case.size, *shape))
    for shape in (
      (heads, of_keys),
      (key_heads, of_keys),
      (value_heads, of_values),
      (heads, of_values),
    )
  )


def value_and_pullback(function):
  """Returns a function to the output and gradients of queries, keys, values."""

  def both(q, k, v, grad, group, **kwargs):
    run = functools.partial(
      function, group_BS=group, scale=q.shape[-1] ** -0.5, **kwargs
    )
    out, pullback = jax.vjp(run, q, k, v)
    return out, *pullback(grad.astype(out.dtype))

  return both


@functools.cache
def compiled(platform, case):
  """Returns output and gradients of a kernel, jitted once for all tests."""
  both = value_and_pullback(KERNELS[platform])
  steps = {'max_blocks_at_once': 1} if case.in_steps else {}
  return jit(both, window=case.window, **steps)


# The window is an argument: calls of one shape share a compiled program.
ORACLE = jit(value_and_pullback(reference.attention))


def rounding_of_scores(q, k):
  """Share of itself by which the rounding of scores may move a weight.

  A sum of products is off by half the distance between float32 numbers at the
  sum of their magnitudes, in the kernel as in the reference, which add in
  different orders. A weight is exp(score - maximum): what a score is off by, a
  weight is off by as a share of itself.
  """
  k = np.repeat(k, q.shape[2] // k.shape[2], axis=2)
  sums = np.einsum('bihd,bjhd->bhij', np.abs(q), np.abs(k))
  largest = np.float32(sums.max() * q.shape[-1] ** -0.5)
  return 2 * (np.spacing(largest) / 2)


def hold(platform, case, arrays, dtype='float32', rounding=0.0):
  """Holds values and gradients of a kernel against those of the reference.

  Args:
    platform: Platform of the kernel.
    case: Sizes of the call.
    arrays: Queries, keys, values and the gradient of the result.
    dtype: Type that the kernel is given.
    rounding: Share that is added to the tolerances.
  """
  arrays = [jnp.asarray(x, dtype) for x in arrays]
  group = make_groups(case.size, case.kinds)
  got = jax.block_until_ready(compiled(platform, case)(*arrays, group))
  if platform == 'mosaic_gpu' and PLATFORM != 'gpu':
    # Of the last kernel; all have the same copies and waits.
    assert not interpret_pallas_call.get_races().races_found
  window = case.size if case.window is None else case.window
  exact = [x.astype(jnp.float32) for x in arrays]
  want = ORACLE(*exact, group, window=window)
  names = ('value', *(f'gradient of {x}' for x in 'qkv'))
  value, gradient = BFLOAT16 if dtype == 'bfloat16' else TOLERANCES[dtype]
  value, gradient = value + rounding, gradient + rounding
  for a, b, name in zip(got, want, names, strict=True):
    assert a.dtype == jnp.dtype(dtype)
    if case.window == 0 and name in ('gradient of q', 'gradient of k'):
      # The result of an id that sees itself alone does not depend on scores.
      np.testing.assert_allclose(a, 0, atol=1e-6)
    else:
      assert_close(a, b, value if name == 'value' else gradient, name)
  return got


@pytest.mark.parametrize(('platform', 'name'), EACH)
def test_agrees_with_the_reference(platform, name):
  case = CASES[platform][name]
  q, k, v, grad = make_inputs(case)
  out, *grads = hold(platform, case, (q, k, v, grad))
  # Results and gradients of ids without a group are exactly 0.
  is_out = make_groups(case.size, case.kinds) < 0
  for x in (out, *grads):
    np.testing.assert_array_equal(x[is_out], 0)
  # Large scores make weights close to 0 and 1.
  if case.window != 0:
    hold(
      platform,
      case,
      (20 * q, k, v, grad),
      rounding=rounding_of_scores(20 * q, k),
    )


@pytest.mark.parametrize(
  ('platform', 'name'),
  [
    # In steps, blocks are the same, one after the other.
    night('tpu', 'beyond a block'),
    ('tpu', 'in steps'),
    ('triton', 'beyond a block'),
    # On a GPU all cases, as float32 is not tested there.
    *(
      night('mosaic_gpu', name)
      for name in CASES['mosaic_gpu']
      if name == 'beyond a block' or (PLATFORM == 'gpu' and name != 'itself')
    ),
    ('cudnn', 'beyond a block'),
    ('cudnn', 'odd row'),
  ],
)
def test_agrees_with_the_reference_in_bfloat16(platform, name):
  case = CASES[platform][name]
  hold(platform, case, make_inputs(case), 'bfloat16')


@pytest.mark.parametrize(
  ('platform', 'name'),
  [
    # Its gradients are held against those of the reference every time.
    night('tpu', 'beyond a block'),
    ('tpu', 'no window, in steps'),
    ('triton', 'beyond a block'),
    *([] if 'mosaic_gpu' in NO_FLOAT32 else [night('mosaic_gpu', 'holes')]),
  ],
)
def test_gradients_hold_numerically_and_are_the_same_twice(platform, name):
  case = CASES[platform][name]
  run = compiled(platform, case)
  *args, grad = (jnp.asarray(x, 'float32') for x in make_inputs(case))
  group = make_groups(case.size, case.kinds)
  first, second = (run(*args, grad, group) for _ in range(2))
  for a, b in zip(first, second, strict=True):
    np.testing.assert_array_equal(a, b)
  step = 1e-2
  for i in range(3):
    direction = jnp.asarray(make_inputs(case, seed=1)[i], 'float32')

    def moved(sign, i=i, direction=direction):
      x = [*args]
      x[i] += sign * step * direction
      out = np.asarray(run(*x, grad, group)[0], np.float64)
      return np.sum(out * np.asarray(grad, np.float64))

    got = (moved(1) - moved(-1)) / (2 * step)
    product = np.asarray(first[1 + i], np.float64) * direction
    want = np.sum(product)
    # The sum is over numbers of either sign.
    assert abs(got - want) < 1e-3 * np.sqrt(np.sum(product**2))


def test_is_the_same_on_many_devices():
  """Rows over two axes, heads over a third; a shared head is not split."""
  case = AttentionCase(129, (2, 2, 1), (6, 4), 130)
  q, k, v, grad = (jnp.asarray(x[:8], 'float32') for x in make_inputs(case))
  run = functools.partial(attention, implementation='pallas_interpret')
  both = functools.partial(value_and_pullback(run), window=case.window)
  args = q, k, v, grad, make_groups(case.size, case.kinds)[:8]
  alone = jit(both)(*args)
  mesh = jax.make_mesh(
    (2, 2, 2),
    ('data', 'fsdp', 'tensor'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  with jax.set_mesh(mesh):
    split = jit(both)(*args)
  assert split[0].sharding.shard_shape(split[0].shape)[::2] == (2, 1)
  for a, b in zip(alone, split, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
  'window',
  [511, None, *(pytest.param(x, marks=pytest.mark.nightly) for x in (0, 127))],
)
@pytest.mark.parametrize(
  ('implementation', 'platform'),
  [('pallas_tpu', 'tpu'), ('pallas_triton', 'cuda')],
)
def test_lowers_without_the_device(implementation, platform, window):
  """The forward pass is one kernel, the backward pass two."""
  target = {'tpu': '@tpu_custom_call', 'cuda': '@__gpu$xla.gpu.triton'}
  for dtype, heads, widths in (
    ('bfloat16', (8, 8, 8), (64, 64)),
    ('float32', (4, 4, 1), (96, 32)),
  ):
    shapes = [
      jax.ShapeDtypeStruct((2, 700, h, w), dtype)
      for h, w in zip(heads, (widths[0], *widths), strict=True)
    ]
    run = functools.partial(attention, implementation=implementation)
    text = lowered(
      functools.partial(value_and_pullback(run), window=window),
      *shapes,
      jax.ShapeDtypeStruct((2, 700, heads[0], widths[1]), dtype),
      jax.ShapeDtypeStruct((2, 700), 'int32'),
      platform=platform,
    )
    assert text.count(target[platform]) == 3


@pytest.mark.parametrize(
  ('implementation', 'dtype', 'widest'),
  [
    ('pallas_tpu', 'float32', 256),
    ('pallas_triton', 'float32', 256),
    ('mosaic_gpu', 'bfloat16', 128),
  ],
)
def test_what_it_cannot_take_is_an_error(implementation, dtype, widest):
  def run(dtype, width, heads=1):
    shape = jax.ShapeDtypeStruct((1, 300, heads, width), dtype)
    shared = jax.ShapeDtypeStruct((1, 300, 1, width), dtype)
    call = functools.partial(
      attention, window=None, scale=1.0, implementation=implementation
    )
    group = jax.ShapeDtypeStruct((1, 300), 'int32')
    jax.eval_shape(
      lambda q, k, g: call(q, k, k, group_BS=g), shape, shared, group
    )

  with pytest.raises(
    NotImplementedError,
    match=rf"'{implementation}': got float64, allowed: {dtype}, ",
  ):
    with jax.enable_x64(True):
      run('float64', 64)
  with pytest.raises(
    NotImplementedError, match=rf'got heads {widest + 8} wide, .* {widest}'
  ):
    run(dtype, widest + 8)
  if implementation == 'pallas_tpu':
    with pytest.raises(NotImplementedError, match=r'128 heads .* 64 MiB'):
      run('float32', 256, heads=128)


@pytest.mark.parametrize('size', [70, 71])
def test_cudnn_is_given_rows_of_even_length(monkeypatch, size):
  """cuDNN has no gradient of rows of odd length."""
  attend, lengths = jax.nn.dot_product_attention, []

  def observed(q, k, v, **kwargs):
    lengths.extend(x.shape[1] for x in (q, k, v))
    return attend(q, k, v, **kwargs)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', observed)
  shape = jax.ShapeDtypeStruct((1, size, 2, 8), 'bfloat16')
  call = functools.partial(
    cudnn.attention, window=30, scale=1.0, implementation='xla'
  )
  out = jax.eval_shape(
    lambda x, group: call(x, x, x, group_BS=group),
    shape,
    jax.ShapeDtypeStruct((1, size), 'int32'),
  )
  assert out.shape[1] == size
  assert lengths == 3 * [size + size % 2]
