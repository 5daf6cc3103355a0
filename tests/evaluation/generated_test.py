"""Generated text beside held-out text."""

import numpy as np
import pytest

from abstractinator import types
from abstractinator.data.documents import Documents, MemoryDocument
from abstractinator.evaluation.evaluate import texts_bits
from abstractinator.evaluation.evaluator import open_run
from abstractinator.evaluation.generated import (
  generated_figures,
  held_out_texts,
)
from abstractinator.evaluation.windows import Passage
from tests.helpers import tiny_run


@pytest.fixture(scope='module')
def evaluator(tmp_path_factory):
  return open_run(tiny_run.saved(tmp_path_factory))


def test_both_continuations_are_priced_after_the_prompt(evaluator):
  size = evaluator.config.data.sequence_length
  start, stop = size // 4, size // 4 + size // 2
  rng = np.random.default_rng(0)
  texts = [rng.bytes(n) for n in (stop - 1, stop, stop + 9, 4 * size)]
  documents = Documents(
    [MemoryDocument(str(i), x) for i, x in enumerate(texts)]
  )
  asked = []

  def draw(prompts, num_bytes):
    asked.append((prompts, num_bytes))
    return [b'', bytes(reversed(texts[2][start:stop])), b'abc']

  found = generated_figures(
    evaluator, held_out_texts(evaluator, documents), draw
  )
  # The first text is too short.
  assert asked == [([text[:start] for text in texts[1:]], stop - start)]

  def bits_per_byte(continuations):
    costs = [
      texts_bits(
        evaluator,
        [Passage(types.bytes_to_ids(text[:start] + x, add_eos=False), start)],
        entropy_model_only=True,
      )[0]
      for text, x in zip(texts[1:], continuations, strict=True)
      if x
    ]
    assert [x.num_bytes for x in costs] == [len(x) for x in continuations if x]
    return sum(x.bits for x in costs) / sum(x.num_bytes for x in costs)

  drawn = bits_per_byte(draw(None, None))
  true = bits_per_byte([text[start:stop] for text in texts[1:]])
  assert drawn != pytest.approx(true, rel=1e-3)
  assert found == {
    'generated/entropy_model_bits_per_byte': pytest.approx(drawn, rel=1e-5),
    'generated/held_out_bits_per_byte': pytest.approx(true, rel=1e-5),
    'generated/over_held_out': pytest.approx(drawn / true, rel=1e-5),
  }


def test_short_documents_alone_are_refused(evaluator):
  with pytest.raises(ValueError, match=r'data: got no document of \d+ bytes'):
    held_out_texts(evaluator, Documents([MemoryDocument('a', b'a')]))
