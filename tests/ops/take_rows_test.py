import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from abstractinator.ops import take_rows as take_rows_lib
from abstractinator.ops.take_rows import add_rows, multiply_rows, take_rows

_ROWS, _WIDTH = 5, 3


def _table() -> jax.Array:
  return jax.random.normal(jax.random.key(0), (_ROWS, _WIDTH))


def test_rows_are_those_of_the_table():
  index = jnp.array([[0, 4], [4, 2]])
  rows = take_rows(_table(), index, jnp.bfloat16)
  assert rows.dtype == jnp.bfloat16
  np.testing.assert_array_equal(rows, _table().astype(jnp.bfloat16)[index])


def test_a_row_that_is_not_there_is_nan():
  assert jnp.isnan(take_rows(_table(), jnp.array([_ROWS]), jnp.float32)).all()


@pytest.mark.parametrize('few', [0, 2048], ids=['many', 'few'])
def test_gradient_is_numerical(monkeypatch, few):
  monkeypatch.setattr(take_rows_lib, 'FEW_ROWS', few)
  index = jnp.array([[0, 4, 4], [4, 2, 0]])
  check_grads(
    lambda table: jnp.sin(take_rows(table, index, jnp.float32)),
    (_table(),),
    order=1,
    modes=['rev'],
  )


@pytest.mark.parametrize('total', [add_rows, multiply_rows])
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_many_are_added_up_in_float32(total, dtype):
  """In bfloat16 a sum of ones stays at 256."""
  shape = (3, 1000)
  index = jax.random.randint(jax.random.key(1), shape, 0, 2)
  x = jax.random.normal(jax.random.key(2), (*shape, _WIDTH), dtype) + 1
  expected = np.zeros((_ROWS, _WIDTH))
  np.add.at(expected, np.asarray(index), np.asarray(x, np.float64))
  found = total(index, x, _ROWS)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('platform', 'rows', 'is_scatter'),
  [
    ('cpu', _ROWS, True),
    ('cuda', _ROWS, False),
    ('tpu', _ROWS, False),
    ('cuda', 8192, True),
  ],
)
def test_few_rows_are_not_added_to_at_once(platform, rows, is_scatter):
  def loss(table, index):
    return take_rows(table, index, jnp.bfloat16).astype(jnp.float32).sum()

  lowered = (
    jax.jit(jax.grad(loss))
    .trace(
      jax.ShapeDtypeStruct((rows, _WIDTH), jnp.float32),
      jax.ShapeDtypeStruct((4, 7), jnp.int32),
    )
    .lower(lowering_platforms=(platform,))
  )
  assert ('scatter' in lowered.as_text()) == is_scatter


def test_rows_do_not_depend_on_the_shape_of_the_index():
  index = jax.random.randint(jax.random.key(3), (2, 3, 4), 0, _ROWS)
  weight = jax.random.normal(jax.random.key(4), (24, _WIDTH))

  def loss(table, shape):
    rows = take_rows(table, index.reshape(shape), jnp.float32)
    return jnp.vdot(rows.reshape(-1, _WIDTH), weight)

  grads = [
    jax.grad(functools.partial(loss, shape=shape))(_table())
    for shape in [(24,), (2, 12), (2, 3, 4)]
  ]
  for grad in grads[1:]:
    np.testing.assert_allclose(grad, grads[0], rtol=1e-6)
