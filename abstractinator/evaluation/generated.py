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


def generated_figures(
  evaluator: Evaluator, documents: Documents, continue_texts: Continue
) -> Figures:
  """Compares continuations by a run with those that documents have.

  The first S // 4 bytes of a document are a prompt, the next S // 2 its true
  continuation, S being `data.sequence_length`.

  Args:
    evaluator: Evaluator of the run, whose first entropy model is the flat
      model that prices both continuations after the same prompt.
    documents: Held-out documents of bytes; those that are shorter are left out.
    continue_texts: Draws continuations with the run.

  Returns:
    `generated/entropy_model_bits_per_byte` of the drawn continuations,
    `generated/held_out_bits_per_byte` of the true ones, and their ratio,
    `generated/over_held_out`: above 1 the run writes what its flat model finds
    unlikely, far below 1 it repeats itself.

  Raises:
    ValueError: If no document is long enough.
  """
  size = evaluator.config.data.sequence_length
  start, stop = size // 4, size // 4 + size // 2
  long = [x for x in documents if x.length >= stop]
  if not long:
    raise ValueError(
      f'data: got no document of {stop} bytes, allowed: at least one'
    )
  count = min(len(long), _NUM_TEXTS)
  chosen = [long[i * len(long) // count] for i in range(count)]
  texts = [bytes(document.read(0, stop)) for document in chosen]
  prompts = [text[:start] for text in texts]
  pairs = {
    'generated': continue_texts(prompts, stop - start),
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
    num_bytes = sum(cost.num_bytes for cost in costs)
    bits_per_byte[name] = sum(cost.bits for cost in costs) / max(num_bytes, 1)
  drawn, true = bits_per_byte['generated'], bits_per_byte['held out']
  figures = {
    'entropy_model_bits_per_byte': drawn,
    'held_out_bits_per_byte': true,
    'over_held_out': drawn / true,
  }
  return {f'generated/{name}': value for name, value in figures.items()}
