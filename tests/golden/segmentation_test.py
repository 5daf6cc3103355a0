"""Segmentation and tokenizer against the original's numbers.

The original opens a segment at the id after which the entropy jumps, ours at
the id that is hard to predict: the same rule on entropies one id earlier.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstractinator import types
from abstractinator.codes import codes
from abstractinator.ops import sampling, segmentation
from abstractinator.ops.segmentation_rules import Policy, wishes


def divide(entropy_BS, thresholds):
  """Returns our segments by each rule with its threshold."""
  return [
    _divide_by(jnp.asarray(entropy_BS), jnp.float32(threshold), rule)
    for rule, threshold in thresholds.items()
  ]


def divide_by_any(entropy_BS, thresholds):
  """Returns the segment of each id, [B, S], by any of the rules."""
  found = divide(entropy_BS, thresholds)
  is_start_BS = np.logical_or.reduce([s.is_start_BS for s in found])
  return np.cumsum(is_start_BS, axis=1) - 1


@functools.partial(jax.jit, static_argnums=2)
def _divide_by(entropy_BS, threshold, rule):
  size = entropy_BS.shape[1]
  zeros = jnp.zeros_like(entropy_BS)
  document_BS = zeros.astype(jnp.int32)
  known = segmentation.known_before(document_BS, document_BS, entropy_BS, zeros)
  return segmentation.segment(
    wishes(known, Policy(threshold, rule, 1, size)),
    document_BS,
    min_length=1,
    max_length=size,
    num_slots=size,
  )


def cases(golden):
  """Yields name, entropies, thresholds by rule, and the original's results."""
  names = {key.rsplit('/', 1)[0] for key in golden.group('out') if '|' in key}
  for name in sorted(names):
    source, delta, threshold = name.split('|')
    thresholds = {'entropy_delta': float(delta.removeprefix('d='))}
    threshold = threshold.removeprefix('t=')
    if threshold != 'None':
      thresholds['entropy_threshold'] = float(threshold)
    yield (
      name,
      golden.arrays[f'in/{source}'],
      thresholds,
      golden.group(f'out/{name}'),
    )


@pytest.mark.golden('c06_*')
def test_golden_divisions_with_the_original_alignment(golden):
  """The original has two conditions at once: starts by either of our rules."""
  count = 0
  for name, entropy, thresholds, want in cases(golden):
    index = divide_by_any(entropy, thresholds)
    np.testing.assert_array_equal(index, want['seg_id'], err_msg=name)
    assert index.max() > 0
    if len(thresholds) == 1:
      count += 1
      (segments,) = divide(entropy, thresholds)
      np.testing.assert_array_equal(segments.index_BS, want['seg_id'])
      np.testing.assert_array_equal(segments.is_end_BS, want['patch_end_mask'])
      first = np.arange(index.shape[1]) - np.asarray(segments.offset_BS)
      np.testing.assert_array_equal(first, want['first_byte_idx'])
  assert count > 0


@pytest.mark.golden('c06_*')
def test_golden_divisions_with_our_alignment_come_one_id_later(golden):
  """H(x_s | x_<s) is the original's entropy at the id before s.

  The original never uses the entropy of its first id.
  """
  for name, entropy, thresholds, want in cases(golden):
    ours = np.pad(entropy, ((0, 0), (1, 0)), mode='edge')[:, :-1]
    found = divide(ours, thresholds)
    is_start = np.logical_or.reduce([s.is_start_BS for s in found])
    theirs = np.diff(want['seg_id'], axis=1) > 0
    np.testing.assert_array_equal(is_start[:, 2:], theirs[:, :-1], name)
    assert is_start[:, 0].all()


@pytest.mark.golden('c06_*')
def test_golden_one_id_is_one_segment(golden):
  want = golden.group('out/len1')
  (segments,) = divide(
    np.ones(want['seg_id'].shape, np.float32), {'entropy_delta': 0.2}
  )
  np.testing.assert_array_equal(segments.index_BS, want['seg_id'])
  np.testing.assert_array_equal(segments.is_end_BS, want['patch_end_mask'])


@pytest.mark.golden('c06_*')
def test_golden_entropies_are_theirs_in_bits(golden):
  got = sampling.entropy_bits(jnp.asarray(golden.arrays['in/logits']))
  np.testing.assert_allclose(
    np.log(2) * got, golden.arrays['out/token_entropy'], atol=2e-5
  )


@pytest.mark.golden('c15_tokenizer*')
def test_golden_ids_of_texts(golden):
  """Our ids have no BOS, which models feed themselves."""
  cfg = golden.cfg
  specials = types.BOS_ID, types.EOS_ID, types.PAD_ID
  assert specials == (cfg['bos'], cfg['eos'], cfg['pad'])
  assert cfg['vocab_size_attr'] == types.VOCAB_SIZE
  for i, text in enumerate(cfg['texts']):
    ids = types.bytes_to_ids(text.encode())
    want = golden.arrays[f'out/ids/{i}']
    np.testing.assert_array_equal([types.BOS_ID, *ids], want)
    plain = types.bytes_to_ids(text.encode(), add_eos=False)
    np.testing.assert_array_equal(plain, golden.arrays[f'out/ids_plain/{i}'])
    decoded, until_eos, _ = cfg['decoded'][i]
    assert types.ids_to_bytes(want).decode() == decoded
    # Ids after EOS are not part of a text.
    assert types.ids_to_bytes(np.append(want, plain)).decode() == until_eos
  with pytest.raises(ValueError, match=r'0\.\.258, got 65\.\.300'):
    types.ids_to_bytes(np.array([300, 65, 258, 66, 257, 67, 0xC3]))


@pytest.mark.golden('c15_tokenizer*')
def test_golden_rows_of_texts(golden):
  """Texts that fit give equal rows; longer ones continue in the next row."""
  want_ids = golden.arrays['out/fixed_ids_nobos']
  want_padding = golden.arrays['out/fixed_kpm_nobos']
  size = golden.cfg['seq_len']
  num_fit = 0
  for i, text in enumerate(golden.cfg['texts']):
    data = text.encode()
    if not data:
      continue
    ids_BS, document_BS = codes.rows(data, size)
    if len(data) < size:
      num_fit += 1
      np.testing.assert_array_equal(ids_BS[0], want_ids[i])
      np.testing.assert_array_equal(document_BS[0] < 0, want_padding[i])
    else:
      np.testing.assert_array_equal(ids_BS[0, :-1], want_ids[i, :-1])
    assert types.ids_to_bytes(ids_BS.ravel()) == data
  assert 0 < num_fit
