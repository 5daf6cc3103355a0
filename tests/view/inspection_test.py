"""What is seen of a text is what the other functions say of it."""

import dataclasses

import numpy as np
import pytest

from abstractinator.types import EOS_ID
from abstractinator.view import inspection
from tests.helpers import tiny_pyramid, tiny_run

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
    # What it has besides is where a text is cut, which `api_test` says.
    pytest.param('one level', marks=pytest.mark.nightly),
    'two levels and a top LM',
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
    for bits_N in (of_level.cost_bits_N, of_level.expander_bits_N):
      assert bits_N.shape == of_level.entropy_bits_N.shape == (num_ids,)
      assert (bits_N >= 0).all()
    num_ids = of_level.codes_PQ.size
  if name == 'two levels and a top LM':
    assert seen.top_code_bits_N.shape == (num_ids,)
    assert (seen.top_code_bits_N > 0).all()
  else:
    assert seen.top_code_bits_N is None
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
  # What was decoded, put together again.
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


def test_what_is_decoded_stands_beside_the_text():
  # Rows of 4 ids: 'abcd', 'ef' and EOS. The last top segment of the first row
  # has no byte: only the further codes of one below.
  seen = inspection.inspection(
    b'abcdef',
    [],
    top_BS=np.array([[0, 0, 0, 1], [0, 0, 1, -1]]),
    num_tops_B=np.array([3, 2]),
    forced_BS=np.array([[97, 0, 99, 100], [101, 102, EOS_ID, 7]]),
    decoded=(
      np.array(
        [[[97, 0], [99, 100], [121, 122]], [[101, 1], [2, EOS_ID], [9, 9]]]
      ),
      np.array([[2, 2, 2], [2, 2, 0]]),
      np.array([[0, 1, 2], [0, 1, 0]]),
    ),
    top_code_bits_N=None,
  )
  assert seen.decoded_N.tolist() == [97, 0, -1, 99, 101, 1, 2]
  assert seen.forced_N.tolist() == [97, 0, 99, 100, 101, 102, EOS_ID]
  beyond = {top: ids.tolist() for top, ids in seen.beyond.items()}
  assert beyond == {1: [100], 2: [121, 122], 4: [EOS_ID]}
  # Two are right; segments have 3, 2, 2, 2 and 1 bytes in or out.
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
