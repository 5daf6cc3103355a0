"""How the code of a prompt's open segment is best chosen.

    python -m abstractinator.benchmarks.open_segment WORKDIR

Held-out texts are cut anywhere and continued greedily by each method of
`modules.generation.open_segment`; what follows is compared with what did. Needs
a run with a top LM.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from abstractinator import inference
from abstractinator.config import RunConfig
from abstractinator.data.pipeline import open_data
from abstractinator.decoding import continue_texts, generate
from abstractinator.decoding.open_segment import METHODS
from abstractinator.decoding.options import Options
from abstractinator.types import NUM_BYTES

_NEW, _SHORTEST, _ROWS, _SLOTS = 24, 48, 64, 16


def main() -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('workdir')
  parser.add_argument('--num_prompts', type=int, default=512)
  args = parser.parse_args()
  level = inference.load(args.workdir)
  prompts, truths = cut_texts(level.config, args.num_prompts)
  print(f'{len(prompts)} texts, jax {jax.__version__}', end='\n\n')
  print(
    '| method | next byte | next 8 bytes | right bytes before a wrong one |'
  )
  print('|---|---|---|---|')
  for method in METHODS:
    right = _right_bytes(level, prompts, truths, method)
    run = np.cumprod(right, axis=1).sum(axis=1).mean()
    print(
      f'| {method} | {right[:, 0].mean():.1%} | {right[:, :8].mean():.1%}'
      f' | {run:.2f} |',
      flush=True,
    )


def cut_texts(
  config: RunConfig, count: int
) -> tuple[list[np.ndarray], np.ndarray]:
  """Beginnings of held-out rows of one document, and what follows them.

  Args:
    config: Of the run.
    count: How many.

  Returns:
    Ids of each beginning, and [N, new bytes] of what follows.
  """
  length = config.data.sequence_length
  documents = config.model.max_documents(length)
  _, rows = open_data(config.data, max_documents=documents)
  rng = np.random.default_rng(0)
  prompts, truths = [], []
  for index in rng.permutation(len(rows)):
    ids = rows[int(index)]['ids']
    if (ids >= NUM_BYTES).any():
      continue
    end = int(rng.integers(_SHORTEST, length - _NEW))
    prompts.append(ids[:end])
    truths.append(ids[end : end + _NEW])
    if len(prompts) == count:
      break
  return prompts, np.stack(truths)


def _right_bytes(level, prompts, truths, method):
  """[N, new bytes] bool."""
  size = level.config.data.sequence_length
  start = functools.partial(
    generate.start, capacity=size + _NEW, num_slots=_SLOTS, method=method
  )
  extend = functools.partial(generate.extend, num_slots=_SLOTS)

  @jax.jit
  def continued(variables, ids_BS, count_B, request):
    def both(m, *args):
      state = start(m, *args)
      return extend(m, state, state.is_done_B)[0]

    extension = level._model.apply(
      variables, ids_BS, count_B, request, method=both
    )
    there_BN = jnp.arange(_NEW) < extension.count_B[:, None]
    return jnp.where(there_BN, extension.bytes_BN[:, :_NEW], -1)

  request = continue_texts.request_of(
    Options(max_new_bytes=_NEW), np.zeros(_ROWS, np.int32)
  )
  outputs = []
  for begin in range(0, len(prompts), _ROWS):
    part = prompts[begin : begin + _ROWS]
    ids_BS = np.zeros((_ROWS, size), np.int32)
    for row, prompt in enumerate(part):
      ids_BS[row, : len(prompt)] = prompt
    count_B = np.array([len(x) for x in part] + [0] * (_ROWS - len(part)))
    new = continued(level._variables, ids_BS, count_B, request)
    outputs.append(np.asarray(new)[: len(part)])
  return np.concatenate(outputs) == truths


if __name__ == '__main__':
  main()
