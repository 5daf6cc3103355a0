"""Pyramids of two levels, whose methods are compiled once."""

import functools

import jax
import pytest

from tests.helpers import tiny_pyramid
from tests.helpers.jitted import jit_to_numpy

SIZE = 40
TWO = tiny_pyramid.make_config({}, {'d_model': 20})
# Of codes with several digits, several codes of a segment, and no codebook.
FORMS = {
  'vq': TWO,
  'rvq': tiny_pyramid.make_config(
    {
      'quantizer.kind': 'rvq',
      'quantizer.codebook_size': 5,
      'pooling.num_queries': 2,
    },
    {'expander.lookback': 1},
  ),
  'fsq': tiny_pyramid.make_config(
    {'quantizer.kind': 'fsq', 'quantizer.levels': (4, 3)}, {}
  ),
  # Vectors go up, and states go down.
  'streams': tiny_pyramid.make_config(
    {
      'expander.base': 'entropy_model',
      'expander.ends': 'entropy',
      'expander.context': 'window',
    },
    {
      'expander.conditioning': 'top_lm',
      'encoder_context': 'segment',
      'quantizer.cosine': True,
    },
    top={'inputs': 'segments'},
  ),
}
# Levels on levels. A digit is the case of several with one, and `streams` have
# one too; what codes of `fsq` cost is tested always.
kinds = pytest.mark.parametrize(
  'kind',
  [
    'rvq',
    'streams',
    *(pytest.param(kind, marks=pytest.mark.nightly) for kind in ('vq', 'fsq')),
  ],
)


class Pyramid:
  """A pyramid and its methods, each compiled once."""

  def __init__(self, config, edit=lambda path, x: x):
    self.config = config
    self.model = tiny_pyramid.make_model(config)
    self.variables = jax.tree_util.tree_map_with_path(
      edit, tiny_pyramid.make_variables(config)
    )
    apply = functools.partial(self.model.apply, self.variables)
    self.call = jit_to_numpy(apply)
    self.expand = [
      jit_to_numpy(apply, method=functools.partial(expand, number=number))
      for number in range(len(config.levels))
    ]
    self.decode = jit_to_numpy(
      lambda *args: apply(*args, SIZE, method='decode_all')
    )


def expand(pyramid, output, number):
  """The expander of a level, given the codes of that output."""
  return pyramid.expand(output.codes, output.top_lm, number)


def filled(path, x):
  """Maps that start at 0 get numbers, so that what they tell matters."""
  name = jax.tree_util.keystr(path, simple=True, separator='/')
  if name.endswith('condition/kernel'):
    return jax.random.normal(jax.random.key(0), x.shape) / 2
  return x


make = functools.cache(functools.partial(Pyramid, edit=filled))


def make_rows(*documents):
  """Three rows, for one compilation: those not given are empty."""
  rows = [*documents, *[[]] * (3 - len(documents))]
  return tiny_pyramid.make_batch(rows, SIZE)
