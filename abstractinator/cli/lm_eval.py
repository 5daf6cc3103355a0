"""Command `abstractinator lm-eval`."""

import argparse
import importlib.util
import os
from typing import TYPE_CHECKING, Any

from abstractinator.cli import common

if TYPE_CHECKING:
  from lm_eval.tasks import TaskManager

EXAMPLE = 'abstractinator lm-eval RUN --tasks=arc_easy --limit=100'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator lm-eval`."""
  common.add(parser, 'workdir', '--step')
  parser.add_argument(
    '--tasks', required=True, help='names of tasks, comma-separated'
  )
  parser.add_argument(
    '--include_path',
    type=os.path.expanduser,
    help='directory with files of more tasks; default: only the tasks that the'
    ' harness ships',
  )
  parser.add_argument(
    '--num_fewshot',
    type=common.at_least(0),
    help='number of solved examples in a context; default: that of the task',
  )
  parser.add_argument(
    '--limit',
    type=common.at_least(1),
    help='number of documents of a task; default: all',
  )
  common.add(
    parser, '--entropy_model_only', '--stride', '--batch_size', '--json'
  )


def run(args: argparse.Namespace) -> str:
  """Runs tasks of the lm-evaluation-harness on a run."""
  if importlib.util.find_spec('lm_eval') is None:
    raise ValueError(
      "lm_eval: is not installed; pip install 'abstractinator[eval]'"
    )
  if args.include_path is not None and not os.path.isdir(args.include_path):
    raise ValueError(
      f'--include_path: got {args.include_path!r}, allowed: a directory'
    )
  common.prepare()
  common.say(f'loading {args.workdir}')
  import lm_eval
  from lm_eval.utils import make_table

  from abstractinator.cli.lm_eval_model import HarnessModel
  from abstractinator.evaluation.evaluator import open_run

  names = [name for name in args.tasks.split(',') if name]
  evaluator = open_run(
    args.workdir, args.step, batch_size=args.batch_size, stride=args.stride
  )
  found: Any = lm_eval.simple_evaluate(
    model=HarnessModel(evaluator, entropy_model_only=args.entropy_model_only),
    tasks=names,
    num_fewshot=args.num_fewshot,
    limit=args.limit,
    task_manager=_task_manager(names, args.include_path),
    log_samples=False,
  )
  results = {
    task: {
      # A metric is named with the filter of the answers, as in `acc,none`.
      name.removesuffix(',none'): value
      for name, value in metrics.items()
      if name not in ('alias', 'name')
    }
    for task, metrics in found['results'].items()
  }
  is_bound = evaluator.has_codes and not args.entropy_model_only
  likelihood = 'hierarchy' if is_bound else 'entropy_model'
  return common.answer(
    args,
    {
      'likelihood': likelihood,
      'results': results,
    },
    f'{make_table(found).rstrip()}\nlikelihoods of the {likelihood}',
  )


def _task_manager(names: list[str], include_path: str | None) -> 'TaskManager':
  """Returns a manager that knows all of these tasks."""
  from lm_eval.tasks import TaskManager

  # It takes seconds to find the tasks that the harness ships.
  for include_defaults in (False, True):
    manager = TaskManager(
      include_path=include_path, include_defaults=include_defaults
    )
    unknown = [name for name in names if name not in manager.all_tasks]
    if names and not unknown:
      return manager
  raise ValueError(
    f'--tasks: got {", ".join(unknown) or "none"}, allowed: tasks of lm_eval'
    ' and of --include_path'
  )
