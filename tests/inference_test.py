import dataclasses
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import abstractinator
from abstractinator.codes.codes import Codes
from abstractinator.evaluation import row_programs
from abstractinator.inference import TrainedPyramid
from abstractinator.runs.checkpointer import Checkpointer
from tests.helpers import tiny_run
from tests.helpers.implementations import XLA

# Rows of the runs here have 32 ids, slots for 16 segments.
LENGTH, SLOTS, NUM_CODES = 32, 16, 64
ALL_BYTES = bytes(range(256))


@pytest.fixture(
  scope='module',
  params=[
    pytest.param((2, 2), id='lookback2-queries2'),
    # Tests of the commands and of the modules cover this level too.
    pytest.param((0, 1), id='alone', marks=pytest.mark.nightly),
  ],
)
def level(request, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  lookback, queries = request.param
  tiny_run.save(workdir, tiny_run.config(lookback=lookback, queries=queries))
  return abstractinator.load(str(workdir))


def codes_per_segment(level):
  return level.config.model.levels[0].pooling.num_queries


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
  """Makes batches small: fewer sizes to compile."""
  monkeypatch.setattr(TrainedPyramid, 'batch_ids', 2 * LENGTH)


def random_bytes(size, seed=0):
  return np.random.default_rng(seed).bytes(size)


def texts():
  """Returns texts that end near the ends of rows and batches."""
  sizes = [1, LENGTH - 1, LENGTH, LENGTH + 1, 700]
  return [random_bytes(size) for size in sizes] + [ALL_BYTES]


def test_segments_join_to_the_text(level):
  for data in texts():
    segments = level.segment(data)
    assert b''.join(segments) == data
    assert all(1 <= len(segment) <= 8 for segment in segments)
  # The text is divided into segments of different lengths.
  assert len({len(segment) for segment in level.segment(ALL_BYTES)}) > 2


def test_a_row_starts_a_segment_and_knows_nothing_of_others(level):
  data = random_bytes(3 * LENGTH)
  alone = [level.segment(data[i : i + LENGTH]) for i in (0, 32, 64)]
  assert [x for row in alone for x in row] == level.segment(data)


def test_each_segment_has_its_codes(level):
  for data in texts():
    codes = level.encode(data)
    assert codes.codes_N.dtype == np.int32
    assert len(codes.count_B) == -(-(len(data) + 1) // LENGTH)
    num_segments = codes.count_B.sum()
    assert len(codes.codes_N) == codes_per_segment(level) * num_segments
    # EOS may have a segment of its own.
    assert num_segments - len(level.segment(data)) in (0, 1)
    assert 0 <= codes.codes_N.min() <= codes.codes_N.max() < NUM_CODES


def test_encoding_does_not_depend_on_the_batch(level, monkeypatch):
  data = random_bytes(700)
  whole = level.encode(data)
  monkeypatch.setattr(TrainedPyramid, 'batch_ids', LENGTH)
  by_row = level.encode(data)
  np.testing.assert_array_equal(whole.codes_N, by_row.codes_N)
  np.testing.assert_array_equal(whole.count_B, by_row.count_B)


def test_memory_is_that_of_what_is_asked_for(level, monkeypatch):
  """Long texts keep no other output of their batches."""
  monkeypatch.setattr(TrainedPyramid, 'batch_ids', 32 * LENGTH)
  data = b'words and more words ' * 3000
  # Whole batches, with EOS.
  data = data[: 50 * 32 * LENGTH - 1]
  for method, most in (('encode', 12), ('segment', 24)):
    call = getattr(level, method)
    call(data[: 32 * LENGTH - 1])
    tracemalloc.start()
    try:
      found = call(data)
      peak = tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()
    assert peak < most * len(data), (method, peak / len(data))
    del found


def test_decoding_a_text_is_decoding_its_rows(level):
  codes = level.encode(random_bytes(700))
  ends = codes_per_segment(level) * np.cumsum(codes.count_B)
  alone = [
    level.decode(Codes(row, np.array([count])))
    for row, count in zip(
      np.split(codes.codes_N, ends[:-1]), codes.count_B, strict=True
    )
  ]
  assert len(set(alone)) > 1
  assert b''.join(alone) == level.decode(codes)


def test_lookback_ends_at_the_row(level):
  """A code changes what later segments decode to within `lookback` only."""
  lookback = level.config.model.levels[0].expander.lookback
  codes = level.encode(random_bytes(3 * LENGTH))
  last = codes.count_B[0] - 1
  queries = codes_per_segment(level)
  decoded = level._decode(codes)
  before = decoded.ids_BPL
  # Change the last code of the last segment until its bytes change.
  at = queries * last + queries - 1
  for step in range(1, NUM_CODES):
    changed = codes.codes_N.copy()
    changed[at] = (changed[at] + step) % NUM_CODES
    other = level._decode(Codes(changed, codes.count_B))
    after = other.ids_BPL
    if (before[0, last] != after[0, last]).any():
      break
  assert (before[0, last] != after[0, last]).any()
  np.testing.assert_array_equal(before[1:], after[1:])
  np.testing.assert_array_equal(decoded.length_BP[1:], other.length_BP[1:])
  for step in range(1, NUM_CODES):
    first = codes.codes_N.copy()
    first[0] = (first[0] + step) % NUM_CODES
    after = level._decode(Codes(first, codes.count_B)).ids_BPL
    is_other = (before != after).any(-1)[0]
    if is_other[0] and is_other[1 : 1 + lookback].any() == (lookback > 0):
      break
  assert is_other[0]
  assert is_other[1 : 1 + lookback].any() == (lookback > 0)
  # Nor do empty slots, which hold code 0.
  assert not is_other[1 + lookback :].any()


def accuracy(level, data):
  """Compares the segments of a text with what they decode to, one by one."""
  decoded = level._decode(level.encode(data))
  is_valid_BP = decoded.rows.is_valid_BP
  truths = level.segment(data)
  # A segment of EOS alone has no bytes.
  truths += [b''] * (is_valid_BP.sum() - len(truths))
  right = total = 0
  for truth, ids, length in zip(
    truths,
    decoded.ids_BPL[is_valid_BP],
    decoded.length_BP[is_valid_BP],
    strict=True,
  ):
    guess = ids[:length].tolist()
    right += sum(a == b for a, b in zip(truth, guess, strict=False))
    total += max(len(truth), sum(id_ < 256 for id_ in guess))
  return right / total


def test_reconstruction_is_encode_then_decode(level):
  for data in texts():
    result = level.reconstruct(data)
    codes = level.encode(data)
    assert result.text == level.decode(codes)
    assert result.num_segments == codes.count_B.sum()
    assert result.bytes_per_segment == len(data) / codes.count_B.sum()
    assert result.byte_accuracy == accuracy(level, data)
    assert result.exact == (result.text == data)


def test_a_perfect_expander_is_exact(level, monkeypatch):
  """A text that comes back whole has accuracy 1, and less after an error."""
  data = random_bytes(100)
  segments = level.segment(data)
  codes = level.encode(data)
  decoded = level._decode(codes)
  ids, lengths = decoded.ids_BPL.copy(), decoded.length_BP.copy()
  is_valid = decoded.rows.is_valid_BP
  for (row, slot), segment in zip(
    np.argwhere(is_valid), segments, strict=False
  ):
    ids[row, slot, : len(segment)] = list(segment)
    lengths[row, slot] = len(segment)
  if len(segments) < codes.count_B.sum():
    lengths[tuple(np.argwhere(is_valid)[-1])] = 0
  decoded = decoded.replace(ids_BPL=ids, length_BP=lengths)
  monkeypatch.setattr(level, '_decode', lambda _: decoded)
  result = level.reconstruct(data)
  assert result.text == data
  assert (result.exact, result.byte_accuracy) == (True, 1.0)
  ids[0, 0, 0] ^= 1
  result = level.reconstruct(data)
  assert (result.exact, result.byte_accuracy) == (False, pytest.approx(0.99))


def test_teacher_forced_accuracy_counts_bytes(level, monkeypatch):
  """Every second id is predicted right; EOS, the last id, is no byte."""
  predict = row_programs.predict_rows

  def half_right(model, variables, ids_BS, document_BS):
    output = predict(model, variables, ids_BS, document_BS)
    *others, _, top_BS = output
    half_BS = ids_BS + np.arange(LENGTH) % 2
    return *others, half_BS, top_BS

  monkeypatch.setattr(row_programs, 'predict_rows', half_right)
  result = level.reconstruct(random_bytes(2 * LENGTH + 4))
  assert result.teacher_forced_byte_accuracy == 0.5


def test_eos_ends_its_segment_and_adds_no_byte(level, monkeypatch):
  ids = np.full((1, SLOTS, 8), 97, np.int32)
  ids[0, 1, 1] = 257
  lengths = np.full((1, SLOTS), 2, np.int32)
  codes = Codes(np.zeros(3 * codes_per_segment(level), int), np.array([3]))
  decoded = level._decode(codes).replace(ids_BPL=ids, length_BP=lengths)
  monkeypatch.setattr(level, '_decode', lambda _: decoded)
  assert level.decode(codes) == b'aaaaa'


@pytest.mark.parametrize(
  ('codes', 'counts', 'message'),
  [
    ([3, NUM_CODES], [2], 'codes: got 64, allowed: 0 to 63'),
    ([-1, 3], [2], 'codes: got -1, allowed: 0 to 63'),
    ([0] * 17, [17], 'segments of a row: got 17, allowed: 1 to 16'),
    ([0, 0], [2, 0], 'segments of a row: got 0, allowed: 1 to 16'),
    ([0, 0], [2, 1], 'codes: got 2 of them, allowed: {}, {} for each'),
  ],
)
def test_codes_that_no_text_has_raise(level, codes, counts, message):
  queries = codes_per_segment(level)
  message = message.format(queries * sum(counts), queries)
  with pytest.raises(ValueError, match=message):
    level.decode(Codes(np.array(codes), np.array(counts)))


def test_empty_texts_raise_and_no_codes_are_no_bytes(level):
  for method in (level.segment, level.encode, level.reconstruct):
    with pytest.raises(ValueError, match='got no bytes, allowed: at least 1'):
      method(b'')
  none = np.zeros(0, np.int32)
  assert level.decode(Codes(none, none)) == b''


def test_few_sizes_of_batches_are_compiled(level, monkeypatch):
  monkeypatch.setattr(TrainedPyramid, 'batch_ids', 7 * LENGTH)
  sizes = []

  def record(model, variables, ids_BS):
    sizes.append(len(ids_BS))
    return (ids_BS,)

  for num_rows in (1, 3, 4, 5, 11):
    rows = np.arange(num_rows * LENGTH).reshape(num_rows, LENGTH)
    (back,) = level._in_batches(record, rows)
    np.testing.assert_array_equal(back, rows)
  # Seven rows fit in a batch; the power of two below is four.
  assert sizes == [1, 4, 4, 4, 1, 4, 4, 4]


def test_step_chooses_the_checkpoint(tmp_path):
  config = tiny_run.config()
  tiny_run.save(tmp_path, config, steps=(3, 5))
  latest, third, fifth = (
    abstractinator.load(str(tmp_path), step=step) for step in (None, 3, 5)
  )
  data = random_bytes(200)
  codes = [x.encode(data).codes_N.tolist() for x in (latest, third, fifth)]
  assert codes[0] == codes[2] != codes[1]


@pytest.mark.parametrize(
  ('context', 'ends'),
  [
    ('window', 'entropy'),
    # The same program decodes these; tests of modules cover the rest.
    pytest.param('full', 'head', marks=pytest.mark.nightly),
  ],
)
def test_rows_decode_id_by_id_where_segments_do_not_alone(
  tmp_path, monkeypatch, context, ends
):
  monkeypatch.setattr(TrainedPyramid, 'batch_ids', LENGTH)
  tiny_run.save(tmp_path, tiny_run.config(context=context, ends=ends))
  level = abstractinator.load(str(tmp_path))
  data = random_bytes(2 * LENGTH + 9)
  codes = level.encode(data)
  rows = np.split(codes.codes_N, np.cumsum(codes.count_B)[:-1])
  alone = [level.decode(Codes(row, np.array([len(row)]))) for row in rows]
  assert b''.join(alone) == level.decode(codes) == level.reconstruct(data).text
  assert all(len(text) <= LENGTH for text in alone)
  assert len(set(b''.join(alone))) > 3


def test_texts_short_of_slots_are_refused_where_entropy_ends_segments(
  tmp_path, monkeypatch
):
  """Decoding has no slots to run short of, so it would divide differently."""
  monkeypatch.setattr(TrainedPyramid, 'batch_ids', LENGTH)
  config = tiny_run.config(context='window', ends='entropy')
  tiny_run.save(tmp_path, config)
  enough = abstractinator.load(str(tmp_path))
  data = random_bytes(2 * LENGTH + 9)
  enough.encode(data)

  def with_few_slots(ends):
    (level,) = config.model.levels
    level = dataclasses.replace(
      level,
      segmentation=dataclasses.replace(level.segmentation, capacity_length=7.0),
      expander=dataclasses.replace(level.expander, ends=ends),
    )
    model = dataclasses.replace(config.model, levels=(level,))
    return TrainedPyramid(
      dataclasses.replace(config, model=model), enough._variables
    )

  few = with_few_slots('entropy')
  message = r'capacity_length: got 7.0, .* 3 rows .* allowed: '
  for method in (few.encode, few.reconstruct):
    with pytest.raises(ValueError, match=message):
      method(data)
  # Dividing them works, and so does encoding if a head decides the ends.
  assert b''.join(few.segment(data)) == data
  assert few.encode(data[:1]).count_B.sum() <= 2
  assert with_few_slots('head').encode(data).count_B[:2].tolist() == [5, 5]


def test_a_run_trained_by_the_kernels_of_a_gpu_is_read_anywhere(tmp_path):
  config = tiny_run.config()
  kernels = dataclasses.replace(config.model.implementation, attention='cudnn')
  model = dataclasses.replace(
    config.model, dtype='bfloat16', implementation=kernels
  )
  stored = dataclasses.replace(config, model=model).to_dict()
  with Checkpointer(str(tmp_path), max_to_keep=1) as checkpointer:
    checkpointer.save(3, tiny_run.random_state(config, 3), {}, stored)
  level = abstractinator.load(str(tmp_path))
  assert level._model.dtype == 'bfloat16'
  assert level._model.implementation == XLA


def test_a_pyramid_goes_to_its_top_codes_and_back(tmp_path):
  tiny_run.save(tmp_path, tiny_run.pyramid_config())
  level = abstractinator.load(str(tmp_path))
  data = random_bytes(2 * LENGTH - 4)
  assert b''.join(level.segment(data)) == data
  codes = level.encode(data)
  assert len(codes.count_B) == 2
  assert len(codes.codes_N) == codes.count_B.sum()
  result = level.reconstruct(data)
  # EOS may have a segment of its own. Top segments span several segments.
  assert result.num_segments - len(level.segment(data)) in (0, 1)
  assert codes.count_B.sum() < result.num_segments
  assert result.text == level.decode(codes)


def test_importing_the_package_is_cheap():
  code = 'import sys, abstractinator; print("jax" in sys.modules)'
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout == 'False\n'


def test_the_package_has_no_other_names():
  with pytest.raises(AttributeError, match="no attribute 'lod'"):
    abstractinator.lod  # noqa: B018
