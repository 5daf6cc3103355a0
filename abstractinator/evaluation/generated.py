"""Generated text under the entropy model, beside the text that was held out."""

from collections.abc import Callable, Sequence

from abstractinator import types
from abstractinator.data.documents import Documents
from abstractinator.evaluation.evaluate import Figures, texts_bits
from abstractinator.evaluation.evaluator import Evaluator
from abstractinator.evaluation.windows import Passage

# Documents that are continued at most.
_NUM_TEXTS = 32

# Takes prompts and a number of bytes, returns a continuation of each prompt.
Continue = Callable[[Sequence[bytes], int], Sequence[bytes]]


def held_out_texts(evaluator: Evaluator, documents: Documents) -> list[bytes]:
  """Returns beginnings of documents: prompts with their true continuations.

  A prompt has S // 4 bytes, the continuation S // 2, S being
  `data.sequence_length`.

  Args:
    evaluator: Evaluator of the run.
    documents: Held-out documents of bytes; those that are shorter are left out.

  Returns:
    Texts of 32 documents at most, evenly spaced.

  Raises:
    ValueError: If no document is long enough.
  """
  stop = sum(_sizes(evaluator))
  long = [x for x in documents if x.length >= stop]
  if not long:
    raise ValueError(
      f'data: got no document of {stop} bytes, allowed: at least one'
    )
  count = min(len(long), _NUM_TEXTS)
  chosen = (long[i * len(long) // count] for i in range(count))
  return [bytes(document.read(0, stop)) for document in chosen]


def generated_figures(
  evaluator: Evaluator, texts: Sequence[bytes], continue_texts: Continue
) -> Figures:
  """Compares continuations by a run with those that texts have.

  Args:
    evaluator: Evaluator of the run, whose first entropy model is the flat
      model that prices both continuations after the same prompt.
    texts: Texts of `held_out_texts`.
    continue_texts: Draws continuations with the run.

  Returns:
    `generated/entropy_model_bits_per_byte` of the drawn continuations,
    `generated/held_out_bits_per_byte` of the true ones, and their ratio,
    `generated/over_held_out`: above 1 the run writes what its flat model finds
    unlikely, far below 1 it repeats itself.
  """
  start, num_bytes = _sizes(evaluator)
  prompts = [text[:start] for text in texts]
  pairs = {
    'generated': continue_texts(prompts, num_bytes),
    'held out': [text[start:] for text in texts],
  }
  bits_per_byte = {}
  for name, ends in pairs.items():
    passages = [
      Passage(types.bytes_to_ids(prompt + end, add_eos=False), start)
      for prompt, end in zip(prompts, ends, strict=True)
      if end
    ]
    costs = texts_bits(evaluator, passages, entropy_model_only=True)
    priced = sum(cost.num_bytes for cost in costs)
    bits_per_byte[name] = sum(cost.bits for cost in costs) / max(priced, 1)
  drawn, true = bits_per_byte['generated'], bits_per_byte['held out']
  figures = {
    'entropy_model_bits_per_byte': drawn,
    'held_out_bits_per_byte': true,
    'over_held_out': drawn / true,
  }
  return {f'generated/{name}': value for name, value in figures.items()}


def _sizes(evaluator: Evaluator) -> tuple[int, int]:
  """Returns the bytes of a prompt and of its continuation."""
  size = evaluator.config.data.sequence_length
  return size // 4, size // 2
