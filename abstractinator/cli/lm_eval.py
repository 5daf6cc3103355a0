"""`abstractinator lm-eval`: tasks of the lm-evaluation-harness."""

import argparse
import importlib.util
import json
import os
from typing import TYPE_CHECKING, Any

from abstractinator.cli import common

if TYPE_CHECKING:
  from abstractinator.evaluation.evaluator import Evaluator

ABOUT = 'Runs tasks of the lm-evaluation-harness on a run.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """See `commands`."""
  common.add_run(parser)
  parser.add_argument('--tasks', required=True, help='names, comma-separated')
  parser.add_argument(
    '--include_path', help='directory of task files, besides those it ships'
  )
  parser.add_argument('--num_fewshot', type=int, help='examples in a context')
  parser.add_argument('--limit', type=int, help='documents of a task')
  parser.add_argument(
    '--entropy_model_only',
    action='store_true',
    help='take the entropy model of the first level, without codes',
  )
  parser.add_argument(
    '--stride', type=int, help='see `abstractinator evaluate`; half a row'
  )
  parser.add_argument('--batch_size', type=int, help='rows; 8192 ids')
  common.add_json(parser)


def run(args: argparse.Namespace) -> str:
  """See `commands`."""
  if importlib.util.find_spec('lm_eval') is None:
    raise ValueError(
      "lm_eval: is not installed; pip install 'abstractinator[eval]'"
    )
  for name, least in (('num_fewshot', 0), ('limit', 1)):
    value = getattr(args, name)
    if value is not None and value < least:
      raise ValueError(f'--{name}: got {value}, allowed: at least {least}')
  if args.include_path is not None and not os.path.isdir(args.include_path):
    raise ValueError(
      f'--include_path: got {args.include_path!r}, allowed: a directory'
    )
  common.be_quiet()
  import lm_eval

  from abstractinator.evaluation.evaluator import open_run

  names = [name for name in args.tasks.split(',') if name]
  evaluator = open_run(
    args.workdir, args.step, batch_size=args.batch_size, stride=args.stride
  )
  manager = _tasks(names, args.include_path)
  found = lm_eval.simple_evaluate(
    model=_adapter(evaluator, args.entropy_model_only),
    tasks=names,
    num_fewshot=args.num_fewshot,
    limit=args.limit,
    task_manager=manager,
    log_samples=False,
  )
  is_bound = evaluator.has_codes and not args.entropy_model_only
  figures = {
    'likelihood': 'hierarchy' if is_bound else 'entropy_model',
    'results': {
      task: {
        # Named with the filter that made them, as in `acc,none`.
        name.removesuffix(',none'): value
        for name, value in of_task.items()
        if name not in ('alias', 'name')
      }
      for task, of_task in found['results'].items()
    },
  }
  if args.json:
    return json.dumps(figures)
  from abstractinator.cli.evaluate import table

  return table(
    {
      f'{task}/{name}': value
      for task, of_task in figures['results'].items()
      for name, value in of_task.items()
    }
  )


def _tasks(names: list[str], include_path: str | None) -> Any:
  """A manager that knows these tasks."""
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


def _adapter(evaluator: 'Evaluator', entropy_model_only: bool) -> Any:
  """A run as the class that the harness wants."""
  from lm_eval.api.model import LM

  from abstractinator.cli.lm_eval_model import HarnessModel

  model = HarnessModel(evaluator, entropy_model_only=entropy_model_only)

  class _Adapter(LM):
    def loglikelihood(self, requests):
      return model.loglikelihood([x.args for x in requests])

    def loglikelihood_rolling(self, requests):
      return model.loglikelihood_rolling([x.args[0] for x in requests])

    def generate_until(self, requests):
      return model.generate_until([x.args for x in requests])

  return _Adapter()
