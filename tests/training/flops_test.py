import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

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


class Transformer(nn.Module):
  """Two dense blocks, to be counted by hand; `remat` must not matter."""

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

  # Where nothing is computed again, the gradient agrees.
  repeated = matmul_flops(gradient, params, x) - 3 * forward
  assert (repeated > 0) == remat
