"""Codes chosen by what they cost, against every code tried by itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.evaluation import code_choice, likelihood
from abstractinator.types import Batch
from tests.helpers import tiny_pyramid
from tests.helpers.jitted import jit

ALONE = tiny_pyramid.make_config(
  {
    'segmentation.rule': 'stride',
    'segmentation.threshold': 4.0,
    'expander.context': 'segment',
    'expander.ends': 'entropy',
    'expander.base': 'entropy_model',
    'expander.conditioning': 'top_lm',
    'quantizer.codebook_size': 6,
  },
  top={'inputs': 'segments'},
)
HEAD = tiny_pyramid.make_config(
  {'expander.context': 'window', 'quantizer.codebook_size': 6}
)
SIZE, CODES = 12, 6


def batch_of(seed, rows=2):
  ids = np.random.default_rng(seed).integers(0, 256, (rows, SIZE))
  zeros = jnp.zeros((rows, SIZE), jnp.int32)
  return Batch(jnp.asarray(ids, jnp.int32), zeros, jnp.arange(rows))


@functools.cache
def counter(model):
  """Returns the program that counts bits of rows, once a model."""

  def run(pyramid, batch, codes_BU):
    found = pyramid.compress_all(batch)
    if codes_BU is not None:
      quantizer = pyramid.levels[-1].compressor.quantizer
      found = code_choice._with_codes(
        found, codes_BU, quantizer.lookup(codes_BU), (CODES,)
      )
    output = pyramid.predict(found, pyramid.predict_top(found))
    is_id_BS = jnp.ones(batch.ids_BS.shape, bool)
    sums, _ = likelihood.pyramid_bits(output, is_id_BS)
    of_top_B = sums.whole['top_lm_code_bits']
    return sum([*likelihood.expansion_bits(sums), of_top_B]), of_top_B

  return jit(model.apply, method=run)


def total_bits(model, variables, batch, codes_BU=None):
  """Bits of each row in all, given codes; those of the quantizer by default."""
  return jax.device_get(counter(model)(variables, batch, codes_BU))


def chosen(config, batch, candidates):
  model, variables = (
    tiny_pyramid.make_model(config),
    tiny_pyramid.make_variables(config),
  )

  def run(pyramid):
    codes, _, nats_BU = code_choice.choose_codes(pyramid, batch, candidates)
    return codes.top_codes, nats_BU

  codes, nats_BU = jit(model.apply, method=run)(variables)
  return model, variables, codes, nats_BU


@pytest.mark.nightly
def test_all_codes_tried_one_by_one_say_the_same():
  """With segments that do not see each other each has its own best code."""
  batch = batch_of(1)
  model, variables, codes, nats_BU = chosen(ALONE, batch, CODES)
  base = codes.codes_BP
  costs = []
  for code in range(CODES):
    everywhere = jnp.full_like(base, code)
    costs.append(total_bits(model, variables, batch, everywhere)[0])
  # Three segments of a row: its cost is a sum over them, code by code.
  found, _ = total_bits(model, variables, batch, base)
  for slot in range(3):
    of_slot = []
    for code in range(CODES):
      other = base.at[:, slot].set(code)
      of_slot.append(total_bits(model, variables, batch, other)[0])
    best = np.min(of_slot, axis=0)
    np.testing.assert_allclose(found, best, rtol=1e-5)
  # The sum over all codes of a segment, from costs of one code everywhere.
  is_code = np.asarray(codes.document_BP) >= 0
  assert is_code.sum() == 6
  marginal = np.sum(np.where(is_code, nats_BU, 0), axis=1) / np.log(2)
  assert (marginal < found).all()
  assert (found <= np.min(costs, axis=0) + 1e-4).all()


def test_the_sum_over_codes_is_the_probability_of_the_text():
  batch = batch_of(2, rows=1)
  batch = dataclasses.replace(
    batch, document_BS=jnp.where(jnp.arange(SIZE) < 4, 0, -1)[None]
  )
  model, variables, codes, nats_BU = chosen(ALONE, batch, CODES)
  assert (np.asarray(codes.document_BP) >= 0).sum() == 1
  bits = [
    total_bits(model, variables, batch, codes.codes_BP.at[:, 0].set(code))[0][0]
    for code in range(CODES)
  ]
  want = -np.log2(np.sum(np.exp2(-np.array(bits))))
  np.testing.assert_allclose(nats_BU[0, 0] / np.log(2), want, rtol=1e-5)


# The nearest are among the candidates of the test below.
@pytest.mark.nightly
def test_one_candidate_is_the_nearest_code():
  batch = batch_of(3)
  model, variables, codes, _ = chosen(HEAD, batch, 1)
  nearest = jit(model.apply, method='compress_all')(variables, batch).top_codes
  is_code = np.asarray(codes.document_BP) >= 0
  np.testing.assert_array_equal(
    np.asarray(codes.codes_BP)[is_code], np.asarray(nearest.codes_BP)[is_code]
  )


def test_chosen_codes_cost_less_than_the_nearest():
  batch = batch_of(4, rows=4)
  model, variables, codes, _ = chosen(HEAD, batch, 4)
  nearest, _ = total_bits(model, variables, batch)
  found, _ = total_bits(model, variables, batch, codes.codes_BP)
  assert found.sum() < nearest.sum() - 1


def test_what_cannot_be_chosen_is_named():
  none = tiny_pyramid.make_config({}, top_lm=None)
  queries = tiny_pyramid.make_config({'pooling.num_queries': 2})
  dictionary = tiny_pyramid.make_config({'quantizer.kind': 'dictionary'})
  for config, count, part in (
    (none, 2, 'top_lm'),
    (queries, 2, 'num_queries: got 2, allowed: 1'),
    (HEAD, 7, 'candidates: got 7, allowed: 1 to 6'),
    (dictionary, 2, "quantizer.kind: got 'dictionary'"),
  ):
    assert part in code_choice.unsupported(config, count)
  assert code_choice.unsupported(HEAD, 6) is None
  assert code_choice.is_independent(ALONE)
  assert not code_choice.is_independent(HEAD)


@pytest.fixture(autouse=True)
def _highest():
  with jax.default_matmul_precision('highest'):
    yield
