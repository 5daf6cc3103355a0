"""An inspection agrees with the other functions of a trained pyramid."""

import dataclasses
import types

import numpy as np
import pytest

from abstractinator.objective import losses
from abstractinator.types import EOS_ID, PAD_ID, Batch
from abstractinator.view import inspection
from tests.helpers import tiny_pyramid, tiny_run
from tests.helpers.jitted import jit

TEXT = 'Grüße aus dem Archiv; 鳥 und so fort.\n\x00'.encode() * 3 + b'\xff\xfe'
CONFIGS = {
  'one level': tiny_run.config(queries=2),
  'two levels and a top LM': tiny_run.pyramid_config(),
}


def three_levels():
  config = tiny_pyramid.make_config(
    {'pooling.num_queries': 2},
    {'quantizer.kind': 'fsq', 'quantizer.levels': (4, 3)},
    {},
    top_lm='continuous',
  )
  return dataclasses.replace(tiny_run.pyramid_config(), model=config)


CONFIGS['three levels'] = three_levels()


@pytest.mark.parametrize(
  'name',
  [
    'one level',
    pytest.param('two levels and a top LM', marks=pytest.mark.nightly),
    pytest.param('three levels', marks=pytest.mark.nightly),
  ],
)
def test_it_agrees_with_the_other_functions(name):
  level = tiny_run.level(CONFIGS[name])
  seen, rebuilt = level.inspect(TEXT), level.reconstruct(TEXT)
  assert seen.text == TEXT
  assert seen.row_size == 32
  num_ids = len(TEXT) + 1
  for of_level in seen.levels:
    assert of_level.lengths_P.sum() == num_ids
    assert of_level.lengths_P.min() > 0
    num_ids = of_level.codes_PQ.size
  check_costs(level, seen)
  codes = level.encode(TEXT)
  assert seen.levels[-1].codes_PQ.reshape(-1).tolist() == codes.codes_N.tolist()
  assert len(seen.levels[-1].lengths_P) == codes.count_B.sum()
  if len(seen.levels) == 1:
    ends = np.minimum(np.cumsum(seen.levels[0].lengths_P), len(TEXT))
    assert np.cumsum([*map(len, level.segment(TEXT))]).tolist() == list(
      dict.fromkeys(ends.tolist())
    )
  assert seen.byte_accuracy == pytest.approx(rebuilt.byte_accuracy)
  is_byte_N = seen.ids() != EOS_ID
  forced = np.mean((seen.forced_N == seen.ids())[is_byte_N])
  assert forced == pytest.approx(rebuilt.teacher_forced_byte_accuracy)
  # Decoded ids in order, beside the text and past top segments.
  of_N = np.arange(len(seen.levels[-1].lengths_P))
  for number in range(len(seen.levels))[::-1]:
    of_N = np.repeat(of_N, seen.levels[number].lengths_P)
    if number:
      of_N = of_N[:: seen.levels[number - 1].codes_PQ.shape[1]]
  ids = np.concatenate(
    [
      np.append(seen.decoded_N[of_N == top], seen.beyond.get(top, []))
      for top in range(of_N[-1] + 1)
    ]
  )
  text = ids[(ids >= 0) & (ids < 256)].astype(np.uint8).tobytes()
  assert text == rebuilt.text
  is_right_N = seen.decoded_N == seen.ids()
  assert not seen.is_wrong()[is_right_N].any()
  assert seen.is_wrong()[is_byte_N & ~is_right_N].all()


def check_costs(level, seen):
  """Compares bits with the nats of one call of the pyramid."""
  ids_BS, document_BS = level._rows([TEXT])
  row_B = np.arange(len(ids_BS), dtype=np.int32)
  output = jit(level._model.apply)(
    level._variables, Batch(ids_BS, document_BS, row_B)
  )

  def close(bits_N, nats_BS, is_real_BS):
    expected_N = np.asarray(nats_BS)[np.asarray(is_real_BS)] / np.log(2)
    np.testing.assert_allclose(bits_N, expected_N, rtol=1e-4, atol=1e-4)

  for of_level, computed, batch in zip(
    seen.levels, output.levels, output.batches, strict=True
  ):
    compressed, is_id_BS = computed.compressed, batch.document_BS >= 0
    entropy_nats_BS = compressed.entropy_bits_BS * np.log(2)
    close(of_level.entropy_bits_N, entropy_nats_BS, is_id_BS)
    close(of_level.cost_bits_N, compressed.entropy_nats_BS, is_id_BS)
    close(of_level.expander_bits_N, computed.expanded.nats_BS, is_id_BS)
    segments = compressed.segments
    is_short_P = segments.is_capacity_bound_BS[segments.is_start_BS]
    assert of_level.is_short_P.tolist() == is_short_P.tolist()
  if output.top_lm is None or output.top_lm.logits is None:
    assert seen.top_code_bits_N is None
  else:
    codes = output.top_codes
    nats_BU = losses.code_nats(output.top_lm, codes.codes_BP)
    close(seen.top_code_bits_N, nats_BU, codes.document_BP >= 0)


def test_decoded_ids_stand_beside_the_text():
  # Rows of 4 ids: 'abcd', 'ef' and EOS. The last top segment of the first row
  # has no byte: its ids are further codes of a segment below.
  seen = inspection.inspection(
    b'abcdef',
    [],
    ids_BS=np.array([[97, 98, 99, 100], [101, 102, EOS_ID, PAD_ID]]),
    top_BS=np.array([[0, 0, 0, 1], [0, 0, 1, -1]]),
    num_tops_B=np.array([3, 2]),
    forced_BS=np.array([[97, 0, 99, 100], [101, 102, EOS_ID, 7]]),
    decoded=types.SimpleNamespace(
      ids_BPL=np.array(
        [[[97, 0], [99, 100], [121, 122]], [[101, 1], [2, EOS_ID], [9, 9]]]
      ),
      length_BP=np.array([[2, 2, 2], [2, 2, 0]]),
      rows=types.SimpleNamespace(origin_BP=np.array([[0, 1, 2], [0, 1, 0]])),
    ),
    top_code_bits_N=None,
  )
  assert seen.decoded_N.tolist() == [97, 0, -1, 99, 101, 1, 2]
  assert seen.forced_N.tolist() == [97, 0, 99, 100, 101, 102, EOS_ID]
  beyond = {top: ids.tolist() for top, ids in seen.beyond.items()}
  assert beyond == {1: [100], 2: [121, 122], 4: [EOS_ID]}
  # Two are right; the larger numbers of bytes are 3, 2, 2, 2 and 1.
  assert seen.byte_accuracy == 2 / 10
  assert seen.is_wrong().tolist() == [
    False,
    True,
    True,
    True,
    False,
    True,
    True,
  ]
