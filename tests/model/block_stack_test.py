"""Remat and scan of the blocks of a stack: the same numbers, other programs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.config.attention import AttentionConfig, StackConfig
from abstractinator.model.transformer import Stack
from tests.helpers.implementations import XLA
from tests.helpers.jitted import jit

ATTENTION = {
  'regular': AttentionConfig('regular', None, None, None),
  'mla': AttentionConfig('mla', kv_dim=6, query_dim=5, retrieval_dim=4),
}
WAYS = {
  'dots': {'remat': 'dots'},
  'blocks': {'remat': 'blocks'},
  'scan': {'scan_layers': True},
  'scan blocks': {'remat': 'blocks', 'scan_layers': True},
}
ROWS, SIZE, WIDTH = 2, 24, 16


def make_stack(form='regular', num_layers=2, **way):
  config = StackConfig(num_layers, 2, 4, 24, ATTENTION[form])
  return Stack(config, WIDTH, dataclasses.replace(XLA, **way), jnp.float32)


def make_rows(size=SIZE):
  x = np.random.default_rng(0).normal(size=(ROWS, size, WIDTH))
  group = np.arange(size) // 11 + np.zeros((ROWS, 1), int)
  return jnp.asarray(x, jnp.float32), jnp.asarray(group, jnp.int32)


@functools.cache
def variables_of(form, num_layers):
  init = make_stack(form, num_layers).init
  return jit(init)(jax.random.key(0), *make_rows())


def loss(variables, x_BSD, group_BS, stack):
  return jnp.sum(jnp.sin(stack.apply(variables, x_BSD, group_BS)))


def gradients(stack, form):
  run = jit(jax.value_and_grad(loss, argnums=(0, 1)), stack=stack)
  return run(variables_of(form, 2), *make_rows())


@functools.cache
def plain_gradients(form):
  return gradients(make_stack(form), form)


@pytest.mark.parametrize('form', ATTENTION)
@pytest.mark.parametrize('way', WAYS)
def test_every_way_has_the_same_parameters_and_gradients(way, form):
  stack = make_stack(form, **WAYS[way])
  variables, rows = variables_of(form, 2), make_rows()
  shapes = jax.eval_shape(stack.init, jax.random.key(0), *rows)
  assert jax.tree.structure(shapes) == jax.tree.structure(variables)
  found = gradients(stack, form)
  expected = plain_gradients(form)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, found, expected)


def test_a_loop_remembers_rows_for_the_next_step():
  caches = []
  for stack in (make_stack(), make_stack(scan_layers=True)):
    cache = stack.init_cache(ROWS, SIZE, jnp.float32)
    prefill = jit(stack.apply, method='prefill')
    caches.append(prefill(variables_of('regular', 2), *make_rows(), cache))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, *caches)


def lowered(num_layers=6, **way):
  stack = make_stack(num_layers=num_layers, **way)
  gradient = jax.jit(jax.grad(functools.partial(loss, stack=stack)))
  return gradient.lower(variables_of('regular', num_layers), *make_rows(256))


def test_a_loop_is_compiled_once_for_all_blocks():
  unrolled, loop = (
    len(lowered(**way).as_text().splitlines())
    for way in ({}, {'scan_layers': True})
  )
  assert loop < 0.5 * unrolled


def test_less_is_kept_for_the_backward_pass():
  def pullback(variables, rows, remat):
    stack = make_stack(num_layers=6, remat=remat)
    return jax.vjp(functools.partial(loss, stack=stack), variables, *rows)[1]

  kept = {}
  for remat in ('none', 'dots', 'blocks'):
    # A pullback is a tree of all that it needs.
    arrays = jax.eval_shape(
      functools.partial(pullback, remat=remat),
      variables_of('regular', 6),
      make_rows(256),
    )
    kept[remat] = sum(x.size for x in jax.tree.leaves(arrays))
  assert kept['blocks'] < 0.4 * kept['none']
  assert kept['blocks'] < kept['dots'] < kept['none']
