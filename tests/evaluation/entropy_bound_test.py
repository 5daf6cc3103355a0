"""The expected cost of a text is at least the entropy of its distribution.

Documents come from a Markov chain over two bytes that can stop after each byte.
There are so few of them that the entropy and the expected cost are exact sums.
"""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator.config import RunConfig
from abstractinator.evaluation.evaluate import texts_bits
from abstractinator.evaluation.evaluator import Evaluator
from abstractinator.evaluation.windows import Passage
from abstractinator.runs.state import variables_of
from abstractinator.training.program import make_program
from abstractinator.types import EOS_ID, PAD_ID, Batch, bytes_to_ids
from configs import default, tiny

# Rows hold the longest document and its end.
LENGTH, SIZE, ROWS = 7, 8, 64
LETTERS = (ord('a'), ord(' '))
# Probabilities of the next letter, and of the end after any letter.
MOVES, STOP = np.array([[0.5, 0.5], [0.7, 0.3]]), 0.15
# Steps of training between looks at the model.
STEPS, LOOKS = 150, 2


def documents():
  """Yields all documents with their probabilities."""
  for length in range(1, LENGTH + 1):
    for letters in itertools.product((0, 1), repeat=length):
      p = MOVES[0, letters[0]] * (1 - STOP) ** (length - 1)
      for a, b in itertools.pairwise(letters):
        p *= MOVES[a, b]
      # The longest documents stop for certain.
      p *= 1.0 if length == LENGTH else STOP
      yield bytes(LETTERS[x] for x in letters), p


def draw(key):
  """Draws a batch to train on, one document in each row."""

  def step(carry, key):
    last, is_going = carry
    stop_key, move_key = jax.random.split(key)
    is_space = jax.random.uniform(move_key) < jnp.asarray(MOVES)[last, 1]
    now = is_space.astype(jnp.int32)
    id_ = jnp.where(is_going, jnp.asarray(LETTERS)[now], PAD_ID)
    stops = jax.random.uniform(stop_key) < STOP
    return (now, is_going & ~stops), id_

  def row(key):
    start = (jnp.zeros((), jnp.int32), jnp.asarray(True))
    _, ids = jax.lax.scan(step, start, jax.random.split(key, LENGTH))
    ids = jnp.append(ids, PAD_ID)
    return ids.at[jnp.sum(ids != PAD_ID)].set(EOS_ID)

  ids_BS = jax.vmap(row)(jax.random.split(key, ROWS))
  document_BS = jnp.where(ids_BS == PAD_ID, -1, 0)
  return Batch(ids_BS, document_BS, jnp.arange(ROWS))


def run_config(num_levels, num_codes) -> RunConfig:
  values = tiny.get_config()
  values.data.sequence_length = SIZE
  values.optimizer.learning_rate = 1e-2
  levels = [default.get_level()]
  levels += [default.get_upper_level() for _ in range(num_levels - 1)]
  for level in levels:
    tiny.make_small(level, d_model=16)
    level.quantizer.codebook_size, level.quantizer.code_dim = 4, 8
    level.quantizer.forbidden = tuple(range(num_codes, 4))
    level.segmentation.target_length = None
    level.segmentation.capacity_length = 1.0
    level.segmentation.max_length = 8
    level.expander.context = 'full'
  for level in levels[1:]:
    level.segmentation.rule, level.segmentation.threshold = 'stride', 2.0
  top_lm = default.get_top_lm()
  top_lm.d_model = 16
  top_lm.stack.num_layers, top_lm.stack.num_heads = 1, 2
  top_lm.stack.ffn_dim = 32
  values.model.levels, values.model.top_lm = tuple(levels), top_lm
  return RunConfig.from_dict(json.loads(values.to_json_best_effort()))


# That bits are those a decoder pays is tested in every run, by
# `likelihood_test`: no decoder takes less than the entropy.
@pytest.mark.nightly
@pytest.mark.parametrize(
  ('num_levels', 'num_codes', 'num_seeds'),
  [
    # With one code, only the ids carry information.
    (1, 1, 2),
    (1, 3, 2),
    (2, 3, 2),
  ],
)
def test_no_model_takes_less_than_the_entropy(num_levels, num_codes, num_seeds):
  config = run_config(num_levels, num_codes)
  program = make_program(config, 'cpu', STEPS * LOOKS)
  texts, p_T = map(list, zip(*documents(), strict=True))
  p_T = np.array(p_T)
  assert p_T.sum() == pytest.approx(1)
  entropy = -np.sum(p_T * np.log2(p_T))

  @functools.partial(jax.jit, donate_argnums=0)
  def train(state, key):
    keys = jax.random.split(key, STEPS)
    return jax.lax.scan(
      lambda state, key: program.step(state, draw(key)), state, keys
    )[0]

  evaluator = None
  for seed in range(num_seeds):
    key = jax.random.key(seed)
    state = jax.jit(program.init)(key)
    for look in range(LOOKS):
      state = train(state, jax.random.fold_in(key, look))
      variables = variables_of(state)
      if evaluator is None:
        evaluator = Evaluator(config, variables, devices=jax.devices()[:1])
      evaluator.variables = variables
      costs = expected_costs(evaluator, texts, p_T)
      total = sum(costs.values())
      assert total >= entropy - 1e-3, costs
    passages = [Passage(bytes_to_ids(text)) for text in texts]
    bits_T = np.array([x.bits for x in texts_bits(evaluator, passages)])
    assert np.sum(p_T * bits_T) == pytest.approx(total, rel=1e-5)
    # Probabilities of all texts add up to at most 1.
    assert np.sum(2.0**-bits_T) <= 1 + 1e-3
    if num_levels > 1:
      # The ends of segments at several levels repeat information, so that the
      # bound is not tight.
      continue
    if num_codes > 1:
      assert total < 1.5 * entropy
      forgotten = sum(x for name, x in costs.items() if 'code_bits' in name)
      assert total - forgotten < 0.95 * entropy, costs
      continue
    # The ids determine the document and its end. The bound is so close that a
    # missing term would show; only the ends of segments repeat information.
    ids = ('expander_bits', 'end_bits')
    total = sum(costs[name] for name in ids)
    assert entropy - 1e-3 <= total < 1.05 * entropy, costs
    endless = expected_costs(evaluator, texts, p_T, add_eos=False)
    assert endless['expander_bits'] < 0.95 * entropy, endless


def expected_costs(evaluator, texts, p_T, add_eos=True):
  """Computes the expected bits of a document, part by part."""
  found = {}
  passages = [Passage(bytes_to_ids(text, add_eos=add_eos)) for text in texts]
  for scored in evaluator.score(passages, alone=True):
    for row, (window,) in enumerate(scored.windows):
      for name, bits_B in scored.sums.flattened().items():
        if name.endswith(('expander_bits', 'end_bits', 'code_bits')):
          bits = p_T[window.passage] * float(bits_B[row])
          found[name] = found.get(name, 0.0) + bits
  return found
