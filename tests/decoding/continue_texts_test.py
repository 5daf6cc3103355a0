"""Texts continued, from Python."""

import functools

import jax
import numpy as np
import pytest

from abstractinator.codes.codes import Codes
from abstractinator.decoding import continue_texts
from abstractinator.decoding import continue_texts as texts
from abstractinator.decoding.options import Options
from abstractinator.evaluation import row_programs
from tests.helpers import generation_rows, tiny_run
from tests.helpers.jitted import jit

LENGTH = 32
PROMPTS = [b'def main():', b'x', b'', bytes(range(120, 140))]
# The top LM, of random parameters, ends every other text where it draws.
DRAWN = {'level_temperature': 1.0, 'max_new_bytes': 30, 'seed': 3}


@pytest.fixture(scope='module')
def pyramid():
  """A level and a top LM; of two levels are the ids in `tests/modules`."""
  return tiny_run.level(
    tiny_run.pyramid_config(num_levels=1), generation_rows.without_ends
  )


@pytest.fixture(scope='module')
def lone():
  """A level without a top LM."""
  return tiny_run.level(tiny_run.config(), generation_rows.without_ends)


@pytest.fixture(scope='module')
def drawn(pyramid):
  return pyramid.generate(PROMPTS, **DRAWN, num_samples=2)


def test_a_sample_does_not_depend_on_its_batch(pyramid, drawn):
  for changes in ({}, {'temperature': 1.0}):
    options = DRAWN | changes
    whole = pyramid.generate(PROMPTS, **options, num_samples=2)
    assert (whole == drawn) == (not changes)
    for prompt, samples in zip(PROMPTS[:2], whole, strict=False):
      assert pyramid.generate(prompt, **options) == [samples[:1]]
    back = pyramid.generate(PROMPTS[::-1], **options, num_samples=2)
    assert back[::-1] == whole
  lengths = {len(text) for samples in whole for text in samples}
  # Some ended by themselves.
  assert len(lengths) > 2


def test_samples_differ_and_have_the_bytes_asked_for(pyramid, drawn):
  texts = [text for samples in drawn for text in samples]
  assert len(set(texts)) == len(texts) == 8
  assert {len(text) for text in texts} == {30}
  again = pyramid.generate(PROMPTS, **DRAWN | {'seed': 4}, num_samples=2)
  assert not set(texts) & {text for samples in again for text in samples}
  # The most likely text has no seed.
  greedy = [
    pyramid.generate(PROMPTS[0], max_new_bytes=30, seed=seed) for seed in (0, 1)
  ]
  assert greedy[0] == greedy[1]


def test_a_stream_joins_to_the_text(pyramid, drawn):
  parts = list(pyramid.stream(PROMPTS[0], **DRAWN))
  assert b''.join(parts) == drawn[0][0]
  assert all(parts)
  split = pyramid.stream(PROMPTS[0], **DRAWN, splits_characters=True)
  assert b''.join(split) == drawn[0][0]


@pytest.mark.nightly
def test_one_program_generates_the_same_bytes(pyramid):
  """`generate_bytes` needs no host between the calls of `extend`."""
  options = Options(**DRAWN)
  ids = np.zeros((len(PROMPTS), LENGTH), np.int32)
  for row, prompt in zip(ids, PROMPTS, strict=True):
    row[: len(prompt)] = list(prompt)
  generate = jit(
    pyramid._model.apply,
    method='generate_bytes',
    max_new_bytes=options.max_new_bytes,
  )
  bytes_BN, count_B = generate(
    pyramid._variables,
    ids,
    np.array([len(prompt) for prompt in PROMPTS]),
    continue_texts.request_of(options, np.zeros(len(PROMPTS), np.int32)),
  )
  found = [
    [bytes(row[:count].tolist())]
    for row, count in zip(np.asarray(bytes_BN), count_B, strict=True)
  ]
  assert found == pyramid.generate(PROMPTS, **DRAWN)
  assert not bytes_BN[
    np.arange(options.max_new_bytes) >= count_B[:, None]
  ].any()


def test_a_stop_string_ends_a_text(pyramid, drawn):
  text = drawn[0][0]
  stop = text[12:15]
  ((got,),) = pyramid.generate(PROMPTS[0], **DRAWN, stop=(stop, b'\0\0\0\0'))
  assert got == text[: text.index(stop)]


def test_one_compilation_a_bucket(lone):
  """Whatever the lengths, the settings and the number of prompts."""
  programs = continue_texts.start_program, continue_texts.extend_program
  # Another test may have compiled programs of this model.
  for program in programs:
    program.clear_cache()

  def new_programs():
    return [program._cache_size() for program in programs]

  for changes in (
    {'top_k': 3},
    {'top_p': 0.5, 'seed': 9},
    {'temperature': 0.0},
  ):
    for lengths in ((1, 5, 20, 7, 2), (9, 9, 1), (33, 3, 3, 3, 3, 3, 3, 3)):
      prompts = [b'a' * n for n in lengths]
      samples = 2 if len(prompts) == 3 else 1
      lone.generate(prompts, **DRAWN | changes, num_samples=samples)
      # All are of 5 to 8 rows, of up to 64 bytes.
      assert new_programs() == [1, 1]
  lone.generate(b'a', **DRAWN)
  assert new_programs() == [2, 2]
  # What is remembered has its own size: of longer texts, a byte costs the same.
  lone.generate(b'a', **DRAWN | {'max_new_bytes': 90})
  assert new_programs() == [3, 2]


def test_of_long_prompts_the_end_is_read(pyramid):
  prompt = bytes(range(97, 97 + 26)) * 2
  with pytest.warns(UserWarning, match='of its 52 bytes the last 32 are read'):
    got = pyramid.generate(prompt, **DRAWN)
  assert got == pyramid.generate(prompt[-LENGTH:], **DRAWN)


def test_alone_the_entropy_model_reads_as_far_as_itself(pyramid):
  model = pyramid.config.model
  context = functools.partial(texts.context_bytes, model, LENGTH)
  assert context(entropy_model_only=False) == LENGTH
  assert context(entropy_model_only=True) is None


def test_without_a_top_lm_the_last_code_goes_on(lone):
  prompt = b'A text, begun.'
  ids = np.zeros((1, LENGTH), np.int32)
  ids[0, : len(prompt)] = list(prompt)
  document = np.where(np.arange(LENGTH) < len(prompt), 0, -1)[None]
  count, codes, _ = row_programs.encode_rows(
    lone._model, lone._variables, ids, document.astype(np.int32), number=0
  )
  last = codes[0, count[0] - 1]
  (unit,) = {lone.decode(Codes(np.array([last]), np.array([1])))}
  ((text,),) = lone.generate(prompt, max_new_bytes=50)
  # After the open segment, the same one again and again.
  end = text[-3 * len(unit) :]
  assert len(text) == 50
  assert end in unit * 5


def test_prompts_without_bytes_need_a_top_lm(lone):
  message = 'prompt: got no bytes, allowed: at least 1 without a top_lm'
  with pytest.raises(ValueError, match=message):
    lone.generate([b'a', b''])
  with pytest.raises(ValueError, match=message):
    next(lone.stream(b''))
  assert lone.generate([]) == []


def test_the_entropy_model_alone_is_what_it_says(lone):
  """Greedily, what whole calls of it say comes next."""
  prompts = [b'begun', b'']
  options = {'max_new_bytes': 26, 'entropy_model_only': True}
  texts = lone.generate(prompts, **options)
  model = lone._model

  @jax.jit
  def predict(ids):
    return model.apply(
      lone._variables,
      ids,
      0 * ids,
      method=lambda m, *x: m.levels[0].compressor.entropy_model(*x).logits,
    )

  for prompt, (text,) in zip(prompts, texts, strict=True):
    assert len(text) == 26
    whole = prompt + text
    ids = np.zeros((1, LENGTH), np.int32)
    ids[0, : len(whole)] = list(whole)
    logits = np.array(predict(ids))[0]
    logits[:, generation_rows.NO_NEXT_ID] = -np.inf
    best = logits.argmax(-1)[len(prompt) : len(whole)]
    assert bytes(best.tolist()) == text
  drawn = lone.generate(prompts, **options, temperature=1.0)
  assert drawn != texts
