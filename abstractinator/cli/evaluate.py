"""`abstractinator evaluate`: how good a run is, over whole documents."""

import argparse
import json
from typing import TYPE_CHECKING

from abstractinator.cli import common

if TYPE_CHECKING:
  from abstractinator.config import DataConfig
  from abstractinator.evaluation.windows import DocumentPassages

ABOUT = 'Measures a run on held-out documents, or on others.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """See `commands`."""
  common.add_run(parser)
  common.add_json(parser)
  add_documents(parser)
  parser.add_argument(
    '--stride',
    type=int,
    help='ids a window counts; the rest of its row is context; half a row',
  )
  parser.add_argument('--batch_size', type=int, help='rows; 8192 ids')
  parser.add_argument(
    '--no_decode',
    action='store_true',
    help='leave out what is decoded from codes alone, the slowest part',
  )
  parser.add_argument(
    '--noise',
    action='store_true',
    help='also on disturbed text, and what one edited byte changes',
  )
  parser.add_argument(
    '--drift',
    action='store_true',
    help='also whether segments grow along a repetitive text',
  )


def add_documents(parser: argparse.ArgumentParser) -> None:
  """Adds the documents that a command reads: `--data`, `--max_documents`."""
  parser.add_argument(
    '--data', help='globs of files; by default what the run held out'
  )
  parser.add_argument(
    '--max_documents', type=int, help='a sample of so many documents'
  )


def run(args: argparse.Namespace) -> str:
  """See `commands`."""
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
  passages = open_documents(args, evaluator.config.data)
  decode = not args.no_decode
  figures = evaluate(evaluator, passages, decode=decode)
  if args.noise:
    from abstractinator.evaluation.noise import noise_figures

    figures |= noise_figures(evaluator, passages.documents, decode=decode)
  if args.drift:
    from abstractinator.evaluation.drift import drift_figures

    if not evaluator.has_codes:
      raise ValueError(
        '--drift: got a run of an entropy model, allowed: a run with codes'
      )
    figures |= drift_figures(evaluator, passages.documents)
  return json.dumps(figures) if args.json else table(figures)


def open_documents(
  args: argparse.Namespace, config: 'DataConfig'
) -> 'DocumentPassages':
  """The documents of `--data`, or those that a run held out.

  Args:
    args: With `data` and `max_documents`.
    config: Of the run.

  Returns:
    Passages, every so manieth document if fewer are asked for.

  Raises:
    ValueError: If files are missing, cannot be read or hold no bytes, or a
      number is out of its range.
  """
  from abstractinator.data import pipeline
  from abstractinator.data.sources import find_documents
  from abstractinator.evaluation.windows import DocumentPassages

  if args.data is None:
    _, rows = pipeline.open_data(config, max_documents=1)
    documents = rows.documents
  else:
    documents = find_documents(args.data)
  documents.require_bytes()
  wanted, there = args.max_documents, documents.num_documents
  if wanted is not None:
    if wanted < 1:
      raise ValueError(f'--max_documents: got {wanted}, allowed: at least 1')
    wanted = min(wanted, there)
    documents = documents.select([i * there // wanted for i in range(wanted)])
  return DocumentPassages(documents)


def table(figures: dict[str, float]) -> str:
  """Figures, one a line."""
  width = max(map(len, figures))

  def show(value):
    return f'{value:.4f}' if isinstance(value, float) else str(value)

  return '\n'.join(
    f'{name:{width}}  {show(value)}' for name, value in figures.items()
  )
