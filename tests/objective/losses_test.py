import types

import jax.numpy as jnp
import numpy as np

from abstractinator.objective import losses
from abstractinator.objective.by_level import ByLevel
from abstractinator.types import EOS_ID, PAD_ID, Batch, Segments
from tests.helpers.loss_weights import loss_weights

NUM_IDS, SLOTS = 5, 3


def make_output(seed=0):
  """Random output of a level on rows [a b | c EOS] and [d | padding]."""
  rng = np.random.default_rng(seed)
  document = np.array([[0, 0, 0, 0], [0, -1, -1, -1]])
  ids = np.array([[1, 2, 3, EOS_ID], [7, PAD_ID, PAD_ID, PAD_ID]])
  is_end = np.array([[0, 1, 0, 1], [1, 0, 0, 0]], bool)
  zeros = np.zeros((2, 4))
  segments = Segments(
    index_BS=np.array([[0, 0, 1, 1], [0, -1, -1, -1]]),
    is_start_BS=zeros,
    is_end_BS=jnp.asarray(is_end),
    offset_BS=zeros,
    count_B=np.array([2, 1]),
    is_capacity_bound_BS=np.array([[0, 0, 1, 1], [0] * 4], bool),
  )

  def normal(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  output = types.SimpleNamespace(
    compressed=types.SimpleNamespace(
      entropy_nats_BS=normal(2, 4),
      gaussian_nats_BS=normal(2, 4),
      segments=segments,
      is_code_BU=jnp.array([[True, True, False], [True, False, False]]),
      soft_digits=None,
      quantized=types.SimpleNamespace(
        distance_BP=jnp.abs(normal(2, SLOTS)),
        codebook_distance_BP=jnp.abs(normal(2, SLOTS)),
        codes_BP=jnp.array([[4, 1, 0], [4, 2, 2]]),
      ),
    ),
    expanded=types.SimpleNamespace(
      nats_BS=normal(2, 4),
      end_logits_BS=normal(2, 4),
      end_is_certain_BS=jnp.array([[False, False, False, True], [False] * 4]),
    ),
  )
  batch = Batch(jnp.asarray(ids), jnp.asarray(document), jnp.arange(2))
  return output, batch


def test_terms_are_sums_over_real_ids_and_segments():
  output, batch = make_output()
  got = losses.level_terms(output, batch)
  real = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
  for name, nats in (
    ('entropy_model', output.compressed.entropy_nats_BS),
    ('expander', output.expanded.nats_BS),
    ('gaussian', output.compressed.gaussian_nats_BS),
  ):
    want = sum(nats[b, s] for b, s in real)
    np.testing.assert_allclose(got[name], want, rtol=1e-5)
  end = np.asarray(output.expanded.end_logits_BS, np.float64)
  is_end = {(0, 1), (1, 0)}
  # EOS ends its segment for certain, which costs nothing.
  want = sum(
    np.log1p(np.exp(-end[at] if at in is_end else end[at]))
    for at in real
    if at != (0, 3)
  )
  np.testing.assert_allclose(got['end'], want, rtol=1e-5)
  quantized = output.compressed.quantized
  for name, distance in (
    ('commitment', quantized.distance_BP),
    ('codebook', quantized.codebook_distance_BP),
  ):
    want = distance[0, 0] + distance[0, 1] + distance[1, 0]
    np.testing.assert_allclose(got[name], want, rtol=1e-6)
  assert float(losses.num_ids(batch)) == NUM_IDS


def test_without_a_gaussian_head_its_term_is_zero():
  output, batch = make_output()
  output.compressed.gaussian_nats_BS = None
  assert float(losses.level_terms(output, batch)['gaussian']) == 0.0


def test_without_a_head_ends_cost_nothing():
  output, batch = make_output()
  output.expanded.end_logits_BS = None
  assert float(losses.level_terms(output, batch)['end']) == 0.0


def test_padding_may_hold_anything():
  output, batch = make_output()
  want = losses.level_terms(output, batch)
  is_pad = np.asarray(batch.document_BS) < 0
  nats = output.compressed.entropy_nats_BS
  output.compressed.entropy_nats_BS = nats.at[is_pad].set(jnp.inf)
  output.expanded.nats_BS = output.expanded.nats_BS.at[is_pad].set(jnp.nan)
  output.expanded.end_logits_BS = output.expanded.end_logits_BS.at[is_pad].set(
    jnp.inf
  )
  for name in ('distance_BP', 'codebook_distance_BP'):
    distance = getattr(output.compressed.quantized, name)
    distance = jnp.where(output.compressed.is_code_BU, distance, jnp.inf)
    setattr(output.compressed.quantized, name, distance)
  nats = output.compressed.gaussian_nats_BS
  output.compressed.gaussian_nats_BS = nats.at[is_pad].set(jnp.nan)
  batch = batch.replace(ids_BS=jnp.where(is_pad, 0, batch.ids_BS))
  got = losses.level_terms(output, batch)
  for name in want:
    np.testing.assert_array_equal(got[name], want[name])


def test_the_objective_weighs_terms_per_id():
  level = {
    'entropy_model': 8.0,
    'gaussian': 12.0,
    'expander': 4.0,
    'end': 2.0,
    'commitment': 1.0,
    'codebook': 3.0,
  }
  weights = loss_weights(
    entropy_model=1.0,
    gaussian=0.25,
    expander=0.5,
    end=2.0,
    commitment=8.0,
    codebook=4.0,
  )
  value = losses.objective(ByLevel((level,)), weights, jnp.float32(4.0))
  assert float(value) == (8 + 3 + 2 + 4 + 8 + 12) / 4
  # A batch of padding has no ids to divide by.
  zero = ByLevel((dict.fromkeys(level, 0.0),))
  assert float(losses.objective(zero, weights, jnp.float32(0.0))) == 0.0


def test_what_predicts_ids_back_is_averaged_over_levels():
  names = dict.fromkeys(
    (
      'entropy_model',
      'gaussian',
      'expander',
      'end',
      'commitment',
      'codebook',
      'rate',
    )
  )
  tops = ('top_lm_code', 'top_lm_vector', 'top_lm_end', 'top_lm_expander')
  level = dict.fromkeys(names, 1.0)
  terms = ByLevel((level, level), dict.fromkeys(tops, 1.0))
  powers = {name: 4.0**n for n, name in enumerate([*names, *tops])}
  value = losses.objective(
    terms,
    loss_weights(**powers),
    jnp.float32(2.0),
  )
  want = sum(
    weight * (1 if name in ('expander', 'end', *tops) else 2)
    for name, weight in powers.items()
  )
  assert float(value) == want / 2
