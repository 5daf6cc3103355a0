"""Command `abstractinator evaluate`."""

import argparse
from typing import TYPE_CHECKING

from abstractinator.cli import common
from abstractinator.config import DataConfig

if TYPE_CHECKING:
  from abstractinator.evaluation.windows import DocumentPassages

EXAMPLE = "abstractinator evaluate RUN --data='texts/*.txt'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator evaluate`."""
  common.add(parser, 'workdir', '--step', '--json', '--stride', '--batch_size')
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
    '--drift',
    action='store_true',
    help='also measure whether segments grow along a repetitive text',
  )


def run(args: argparse.Namespace) -> str:
  """Measures a run on held-out or other documents."""
  common.be_quiet()
  from abstractinator.evaluation.evaluate import evaluate
  from abstractinator.evaluation.evaluator import open_run

  evaluator = open_run(
    args.workdir, args.step, batch_size=args.batch_size, stride=args.stride
  )
  if args.data is None and evaluator.config.objective == 'top_lm':
    raise ValueError(
      '--data: got none, allowed: globs of texts, for a run that has learned'
      ' from codes and held out no text'
    )
  passages = _open_documents(args, evaluator.config.data)
  decode = not args.no_decode
  found = evaluate(evaluator, passages, decode=decode)
  # The table begins with the figures of the whole.
  figures = found.whole | found.flattened()
  if args.noise:
    from abstractinator.evaluation.robustness import noise_figures

    figures |= noise_figures(evaluator, passages.documents, decode=decode)
  if args.drift:
    from abstractinator.evaluation.robustness import drift_figures

    if not evaluator.has_codes:
      raise ValueError(
        '--drift: got a run of an entropy model, allowed: a run with codes'
      )
    figures |= drift_figures(evaluator, passages.documents)
  return common.answer(args, figures, common.table(figures))


def _open_documents(
  args: argparse.Namespace, config: DataConfig
) -> 'DocumentPassages':
  """Opens the documents of `--data`, or those that a run held out.

  Args:
    args: Arguments of the command.
    config: Data section of the run's config.

  Returns:
    The documents; with `--max_documents` this many of them, evenly spaced.

  Raises:
    ValueError: If files are missing, cannot be read or hold no bytes.
  """
  from abstractinator.data import pipeline
  from abstractinator.data.documents import Documents
  from abstractinator.data.sources import find_documents
  from abstractinator.evaluation.windows import DocumentPassages

  if args.data is None:
    _, rows = pipeline.open_data(config, max_documents=1)
    documents = rows.documents
  else:
    documents = find_documents(args.data)
  documents.require_bytes()
  if args.max_documents is not None:
    there = len(documents)
    wanted = min(args.max_documents, there)
    documents = Documents(documents[i * there // wanted] for i in range(wanted))
  return DocumentPassages(documents)
