import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl

from abstractinator.ops.attention import pallas_tpu, pallas_triton, xla
from abstractinator.training.flops import matmul_flops, training_flops


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


@pytest.mark.parametrize(
  ('equation', 'shapes', 'expected'),
  [
    ('ij,jk->ik', [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
    ('bij,bjk->bik', [(2, 3, 5), (2, 5, 7)], 2 * 2 * 3 * 5 * 7),
    ('bnqhd,bnkhd->bnhqk', [(2, 3, 4, 5, 6)] * 2, 2 * 2 * 3 * 4 * 4 * 5 * 6),
    ('ijk,kj->i', [(3, 5, 7), (7, 5)], 2 * 3 * 5 * 7),
  ],
)
def test_products(equation, shapes, expected):
  def product(*factors):
    return jnp.einsum(equation, *factors)

  assert matmul_flops(product, *(shape(*s) for s in shapes)) == expected


ONE = 2 * 4**3


def scan_ten(x):
  return lax.scan(lambda c, _: (jnp.sin(c @ x), None), x, length=10)[0]


def nested_scans(x):
  return lax.scan(lambda c, _: (scan_ten(c) @ x, None), x, length=3)[0]


@jax.custom_vjp
def custom(x):
  return x @ x


custom.defvjp(lambda x: (x @ x @ x, x), lambda x, g: (g @ x,))


@pytest.mark.parametrize(
  ('function', 'products'),
  [
    (scan_ten, 10),
    (nested_scans, 3 * 11),
    (lambda x: lax.map(lambda y: y @ x, jnp.zeros((6, 4, 4))), 6),
    (lambda x: lax.while_loop(lambda c: c.sum() < 1, lambda c: c @ x, x), 1),
    (lambda x: lax.cond(x.sum() > 0, lambda: x @ x @ x, lambda: x @ x), 2),
    (jax.checkpoint(lambda x: x @ x), 1),
    (jax.jit(jax.jit(lambda x: x @ x)), 1),
    (custom, 1),
    (jnp.sin, 0),
  ],
)
def test_what_holds_products(function, products):
  assert matmul_flops(function, shape(4, 4)) == products * ONE


def test_a_kernel_counts_once_for_each_point_of_its_grid():
  def kernel(x_ref, out_ref):
    out_ref[...] = lax.fori_loop(
      0, 5, lambda _, x: x @ x_ref[...], x_ref[...], unroll=False
    )

  def function(x):
    block = pl.BlockSpec((4, 4), lambda i, j: (i, 0))
    return pl.pallas_call(
      kernel,
      out_shape=jax.ShapeDtypeStruct((12, 4), jnp.float32),
      grid=(3, 2),
      in_specs=[block],
      out_specs=block,
    )(x)

  assert matmul_flops(function, shape(12, 4)) == 3 * 2 * 5 * ONE


@pytest.mark.parametrize(
  ('size', 'window', 'pairs'),
  [
    # A program meets all blocks at once: those to come are masked.
    (512, None, 4 * 256**2),
    (1024, 128, 8 * 2 * 128**2),
    (1024, 300, 4 * 3 * 256**2),
    # It meets 8 blocks one after the other and skips those to come.
    (2048, None, 8 * 9 // 2 * 256**2),
  ],
)
def test_attention_on_tpus_counts_the_pairs_of_ids_in_its_blocks(
  size, window, pairs
):
  batch, heads, width = 2, 3, 32

  def attend(q, k, v, group):
    return pallas_tpu.attention(
      q, k, v, group_BS=group, window=window, scale=1.0, interpret=True
    )

  x = shape(batch, size, heads, width)
  group = jax.ShapeDtypeStruct((batch, size), jnp.int32)
  # Scores and values: two products of a width of a head for each pair.
  expected = 2 * batch * heads * pairs * 2 * width
  assert matmul_flops(attend, x, x, x, group) == expected


def test_attention_by_xla_and_by_kernels_counts_the_same():
  """With a window of a block both compute two blocks of keys a query."""

  def attend(attention, **options):
    return lambda q, k, v, group: attention(
      q, k, v, group_BS=group, window=128, scale=1.0, **options
    )

  x, group = shape(2, 1024, 3, 32), jax.ShapeDtypeStruct((2, 1024), jnp.int32)
  by_xla = matmul_flops(attend(xla.attention), x, x, x, group)
  kernel = attend(pallas_tpu.attention, interpret=True)
  assert matmul_flops(kernel, x, x, x, group) == by_xla
  assert by_xla == 2 * 2 * 3 * 1024 * 2 * 128 * 2 * 32


def test_a_kernel_of_unknown_length_counts_as_it_estimates():
  def attend(q, k, v, group):
    return pallas_triton.attention(
      q, k, v, group_BS=group, window=None, scale=1.0, interpret=True
    )

  x = jax.ShapeDtypeStruct((2, 256, 3, 32), jnp.bfloat16)
  group = jax.ShapeDtypeStruct((2, 256), jnp.int32)
  least = 2 * 2 * 3 * 256 * 256 // 2 * 2 * 32
  assert least <= matmul_flops(attend, x, x, x, group) <= 2 * least


class Transformer(nn.Module):
  """Two dense blocks whose FLOPs are easy to count by hand."""

  remat: bool

  @nn.compact
  def __call__(self, x):
    block = nn.remat(Block) if self.remat else Block
    for i in range(2):
      x = block(name=f'block_{i}')(x)
    return x


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    x += nn.MultiHeadDotProductAttention(num_heads=4)(x)
    return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(64)(x)))


@pytest.mark.parametrize('remat', [False, True])
def test_training_a_transformer(remat):
  batch, size, width, hidden = 3, 10, 16, 64
  model = Transformer(remat=remat)
  x = shape(batch, size, width)
  params = jax.eval_shape(model.init, jax.random.key(0), x)
  per_id = 4 * width * width + 2 * width * hidden + 2 * size * width
  forward = 2 * 2 * batch * size * per_id
  assert training_flops(model.apply, params, x) == 3 * forward

  def gradient(params, x):
    return jax.grad(lambda p, x: model.apply(p, x).sum(), (0, 1))(params, x)

  # Without rematerialization the gradient has just these products.
  repeated = matmul_flops(gradient, params, x) - 3 * forward
  assert (repeated > 0) == remat
