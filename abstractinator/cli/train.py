"""Command `abstractinator train`; `train.py` runs the same."""

import argparse
import datetime
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from abstractinator.cli import common, config_file

if TYPE_CHECKING:
  import ml_collections

  from abstractinator.runs.state import TrainState
  from abstractinator.training.loop import Run
  from abstractinator.training.profile import Profile

EXAMPLE = 'abstractinator train --config=tiny --config.max_steps=100'
# Status of a process that SIGTERM ends, so that a scheduler starts it again.
_PREEMPTED = 143
# Kept with their default None, which each help text explains.
_FLAGS: dict[str, dict] = {
  '--config': {
    'metavar': 'FILE',
    'help': 'Python file with a get_config(), or the name of one of configs/;'
    ' default: the config of the run of --workdir or --resume_from if there is'
    " one, else 'default'",
  },
  '--workdir': {
    'metavar': 'DIR',
    'help': 'directory of the run, which is resumed if it holds one; default:'
    ' runs/TIME',
  },
  '--resume_from': {
    'metavar': 'DIR',
    'help': 'directory of a run to resume in a new workdir; default: none',
  },
  '--load_base_from': {
    'metavar': 'DIR',
    'help': 'directory of a run whose levels are loaded, the same as'
    ' --config.load_base_from; default: that of the config',
  },
  '--profile_steps': {
    'metavar': 'START:STOP',
    'help': 'steps to trace for TensorBoard; default: none',
  },
  '--coordinator_address': {
    'metavar': 'HOST:PORT',
    'help': 'address of process 0 of several processes; default:'
    ' JAX_COORDINATOR_ADDRESS, and one process without that',
  },
  '--num_processes': {
    'metavar': 'N',
    'type': common.at_least(1),
    'help': 'number of processes that train together; default:'
    ' JAX_NUM_PROCESSES',
  },
  '--process_id': {
    'metavar': 'I',
    'type': common.at_least(0),
    'help': 'number of this process, from 0; default: JAX_PROCESS_ID',
  },
  '--compilation_cache_dir': {
    'metavar': 'DIR',
    'help': 'directory in which compiled programs are kept for later runs;'
    ' default: JAX_COMPILATION_CACHE_DIR, and no cache without that',
  },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator train`."""
  for name, about in _FLAGS.items():
    parser.add_argument(name, **about)
  parser.add_argument_group(
    'settings',
    '--config.PATH=VALUE gives a setting another value, for example'
    ' --config.data.batch_size=16; it may be given several times. Every setting'
    f' is described in {config_file.CONFIGS / "default.py"}.',
  )
  parser.set_defaults(settings=[])


def run(args: argparse.Namespace) -> str | Iterator[str]:
  """Trains a model, or resumes a run."""
  source = args.config or _default_config(args)
  config = config_file.read(source, args.settings, others=_FLAGS)
  if args.load_base_from is not None:
    config.load_base_from = args.load_base_from
  # The import of jax is slow; a wrong flag is answered before it.
  import jax

  from abstractinator.runs import processes
  from abstractinator.training import report

  if args.compilation_cache_dir is not None:
    jax.config.update('jax_compilation_cache_dir', args.compilation_cache_dir)
  training, state, profile = _start(args, config)
  try:
    final = training.train(state, profile)
  except FloatingPointError as error:
    raise common.Stop(1, str(error)) from error
  except processes.Preempted as stop:
    resume = f'abstractinator train --workdir={training.workdir}'
    line = f'{stop}; resume it: {resume}' if processes.is_main() else None
    raise common.Stop(_PREEMPTED, line) from stop
  if not processes.is_main():
    return iter(())
  return report.closing(
    training.workdir, training.config, training.total_steps, final
  )


def _start(
  args: argparse.Namespace, settings: 'ml_collections.ConfigDict'
) -> 'tuple[Run, TrainState, Profile]':
  """Opens the run that the flags describe, the same on all processes.

  Nothing is written before all processes know that the run can start.
  """
  from abstractinator.runs import processes
  from abstractinator.runs import workdir as workdirs
  from abstractinator.training.loop import Run
  from abstractinator.training.profile import NO_PROFILE, Profile

  profile = NO_PROFILE
  if args.profile_steps is not None:
    profile = Profile.parse(args.profile_steps)
  processes.join(args.coordinator_address, args.num_processes, args.process_id)
  now = datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
  workdir = args.workdir or processes.agree(os.path.join('runs', now))
  for name, text in (
    ('config', settings.to_json_best_effort(sort_keys=True)),
    ('--workdir', workdir),
    ('--profile_steps', args.profile_steps),
    ('--resume_from', args.resume_from),
  ):
    processes.require_equal(name, str(text))
  with processes.together():
    config = config_file.run_config(settings)
    workdirs.check(workdir, config)
    if processes.is_main():
      source = config.data.train or "Python's standard library"
      sys.stderr.write(f'reading documents: {source}\n')
    opened = Run(config, workdir)
  opened.require_same_data()
  with processes.together():
    state = opened.start(args.resume_from)
    if profile.start < profile.stop:
      profile.check(int(state.step), opened.total_steps)
  with processes.together():
    if processes.is_main():
      workdirs.claim(workdir, config)
  return opened, state, profile


def _default_config(args: argparse.Namespace) -> str:
  for workdir in (args.workdir, args.resume_from):
    if workdir and os.path.exists(os.path.join(workdir, 'config.json')):
      return f'resume:{workdir}'
  return 'default'
