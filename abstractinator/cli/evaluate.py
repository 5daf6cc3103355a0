"""Command `abstractinator evaluate`."""

import argparse
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from abstractinator.cli import common
from abstractinator.config import DataConfig
from abstractinator.evaluation import units

if TYPE_CHECKING:
  from abstractinator.config import RunConfig
  from abstractinator.evaluation.evaluate import Figure, Figures
  from abstractinator.evaluation.evaluator import Evaluator
  from abstractinator.evaluation.windows import DocumentPassages, Passage
  from abstractinator.objective.by_level import ByLevel
  from abstractinator.types import PyTree

EXAMPLE = "abstractinator evaluate RUN --data='texts/*.txt'"


# Least time between two lines that count documents.
_INTERVAL_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator evaluate`."""
  common.add(parser, 'workdir', '--step', '--json', '--stride', '--batch_size')
  common.add(parser, '--candidates')
  parser.add_argument(
    '--data',
    help='globs of the files to measure on; default: the documents that the run'
    ' held out',
  )
  parser.add_argument(
    '--max_documents',
    type=common.at_least(1),
    help='number of documents to measure on, evenly spaced in the data;'
    ' default: all',
  )
  parser.add_argument(
    '--no_decode',
    action='store_true',
    help='leave out figures of texts decoded from codes alone, the slowest'
    ' part',
  )
  parser.add_argument(
    '--noise',
    action='store_true',
    help='also measure on disturbed text, and the effects of one edited byte',
  )
  parser.add_argument(
    '--generated',
    action='store_true',
    help='also continue held-out texts at a temperature of 1, and compare what'
    ' the entropy model says of these and of the true continuations',
  )
  parser.add_argument(
    '--drift',
    action='store_true',
    help='also measure whether segments grow along a repetitive text',
  )


def run(args: argparse.Namespace) -> str:
  """Measures a run on held-out or other documents."""
  common.prepare()
  common.say(f'loading {args.workdir}')
  from abstractinator.evaluation.evaluate import evaluate
  from abstractinator.evaluation.evaluator import Evaluator
  from abstractinator.runs.load import read_trained

  trained = read_trained(args.workdir, args.step)
  evaluator = Evaluator(
    *trained,
    batch_size=args.batch_size,
    stride=args.stride,
    candidates=args.candidates,
  )
  if args.data is None and evaluator.config.objective == 'top_lm':
    raise ValueError(
      '--data: got none, allowed: globs of texts, for a run that has learned'
      ' from codes and held out no text'
    )
  if args.drift and not evaluator.has_codes:
    raise ValueError(
      '--drift: got a run of an entropy model, allowed: a run with codes'
    )
  passages = open_documents(
    evaluator.config.data, args.data, args.max_documents
  )
  if args.generated:
    from abstractinator.evaluation import generated

    # Before the long work, since there may be none.
    texts = generated.held_out_texts(evaluator, passages.documents)
  common.say(f'evaluating {len(passages.documents):,} documents, compiling')
  decode = not args.no_decode
  found = evaluate(evaluator, _Counted(passages), decode=decode)
  more: dict[str, Any] = {}
  if args.noise:
    from abstractinator.evaluation.robustness import noise_figures

    common.say('evaluating disturbed text')
    more |= noise_figures(evaluator, passages.documents, decode=decode)
  if args.generated:
    more |= _generated(evaluator, trained, texts)
  if args.drift:
    from abstractinator.evaluation.robustness import drift_figures

    common.say('evaluating repetitive text')
    more |= drift_figures(evaluator, passages.documents)
  return common.answer(
    args, found.whole | found.flattened() | more, grouped(found, more)
  )


def _generated(
  evaluator: 'Evaluator',
  trained: tuple['RunConfig', 'PyTree'],
  texts: Sequence[bytes],
) -> 'Figures':
  """Figures of continuations of texts by a run: its config and variables."""
  from abstractinator.evaluation.generated import generated_figures
  from abstractinator.inference import TrainedPyramid

  pyramid = TrainedPyramid(*trained)

  def continue_texts(prompts: Sequence[bytes], num_bytes: int) -> list[bytes]:
    drawn = pyramid.generate(
      prompts,
      temperature=1.0,
      max_new_bytes=num_bytes,
      entropy_model_only=not evaluator.has_codes,
    )
    return [sample for (sample,) in drawn]

  common.say('generating texts')
  if evaluator.has_codes and evaluator.config.model.top_lm is None:
    common.say('this run has no top LM: the last code of each prompt repeats')
  return generated_figures(evaluator, texts, continue_texts)


# Figures that come first, in this order.
_HEADLINE = (
  'total_bits_per_byte',
  'total_over_flat',
  'bits_back_bits_per_byte',
  'code_efficiency',
  'code_bits_per_byte',
  'code_model',
  'free_running_byte_accuracy',
  'exact_document_fraction',
  'teacher_forced_byte_accuracy',
)


def grouped(found: 'ByLevel[Figure]', more: dict[str, Any]) -> str:
  """Returns figures as text with units: the headline, then each level.

  Args:
    found: Figures of each level and of the whole.
    more: Other figures, a group for the first part of their names.
  """
  first = {name: found.whole[name] for name in _HEADLINE if name in found.whole}
  groups: dict[str, dict[str, Any]] = {'whole': first | found.whole}
  for number, of_level in enumerate(found.levels):
    groups[f'level {number}'] = of_level
  for name, value in more.items():
    group, _, rest = name.rpartition('/')
    groups.setdefault(group or 'other', {})[rest] = value
  lines = []
  for group, figures in groups.items():
    rows = {k: units.with_unit(k, value) for k, value in figures.items()}
    lines += [group, *units.table(rows, indent='  ')]
  return '\n'.join(lines)


@dataclasses.dataclass(frozen=True)
class _Counted:
  """Passages that tell on standard error how many were read."""

  passages: 'DocumentPassages'

  def __iter__(self) -> 'Iterator[Passage]':
    last, total = time.monotonic(), len(self.passages.documents)
    for number, passage in enumerate(self.passages, start=1):
      if time.monotonic() - last >= _INTERVAL_SECONDS:
        common.say(f'document {number:,} of {total:,}')
        last = time.monotonic()
      yield passage


def open_documents(
  config: DataConfig, data: str | None, max_documents: int | None
) -> 'DocumentPassages':
  """Opens documents to measure on, or those that a run held out.

  Args:
    config: Data section of the run's config.
    data: Globs of the documents; None for those that the run held out.
    max_documents: Number of documents to take, evenly spaced; None for all.

  Raises:
    ValueError: If files are missing, cannot be read or hold no bytes.
  """
  from abstractinator.data import pipeline
  from abstractinator.data.documents import Documents
  from abstractinator.data.sources import find_documents
  from abstractinator.evaluation.windows import DocumentPassages

  if data is None:
    _, rows = pipeline.open_data(config, max_documents=1)
    documents = rows.documents
  else:
    documents = find_documents(data)
  documents.require_bytes()
  if max_documents is not None:
    there = len(documents)
    wanted = min(max_documents, there)
    documents = Documents(documents[i * there // wanted] for i in range(wanted))
  return DocumentPassages(documents)
