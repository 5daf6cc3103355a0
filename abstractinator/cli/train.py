"""Command `abstractinator train`; `train.py` runs the same."""

import argparse
import contextlib
import datetime
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from abstractinator.cli import common, config_file
from abstractinator.runs import allocator

if TYPE_CHECKING:
  import ml_collections

  from abstractinator.runs.state import TrainState
  from abstractinator.training.loop import Run
  from abstractinator.training.profile import Profile

EXAMPLE = 'abstractinator train --config=tiny --config.max_steps=100'
# Status of a process that SIGTERM or Ctrl-C stops; schedulers start it again.
_PREEMPTED = 143
# Time that other processes need to end after a fault of this one.
_GRACE_SECONDS = 2.0
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
    'type': os.path.expanduser,
    'help': 'directory of the run, which is resumed if it holds one; default:'
    ' runs/TIME',
  },
  '--resume_from': {
    'metavar': 'DIR',
    'type': os.path.expanduser,
    'help': 'directory of a run to resume in a new workdir; default: none',
  },
  '--resume_step': {
    'metavar': 'STEP',
    'type': common.at_least(0),
    'help': 'step of the checkpoint of --resume_from; default: the latest',
  },
  '--load_base_from': {
    'metavar': 'DIR',
    'type': os.path.expanduser,
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
    'type': os.path.expanduser,
    'help': 'directory in which compiled programs are kept for later runs, or'
    " '' for none; default: JAX_COMPILATION_CACHE_DIR, and without that, for a"
    " run of one process, a directory in the user's cache directory",
  },
  allocator.OFF: {
    'action': 'store_true',
    'help': 'give memory back to the system after each step; by default a'
    ' process on CPU and Linux keeps it for the next step, which is faster and'
    ' takes more of it',
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

  if args.resume_step is not None and args.resume_from is None:
    raise ValueError(
      f'--resume_step: got {args.resume_step}, allowed: only with --resume_from'
    )
  with contextlib.ExitStack() as held:
    training, state, profile = _start(args, config, held)
    try:
      final = training.train(state, profile)
    except FloatingPointError as error:
      raise common.Stop(1, str(error)) from error
    except OSError as error:
      _leave_others(held, str(error))
      raise
    except jax.errors.JaxRuntimeError as error:
      reason = str(error).partition('\n')[0]
      _leave_others(
        held, f'another process has ended, or a device failed ({reason})'
      )
      raise
    except ValueError as error:
      # All that a user can mend is an OSError by now: this needs a traceback.
      raise RuntimeError(str(error)) from error
    except processes.Preempted as stop:
      resume = f'{report.command()} --workdir={training.workdir}'
      line = f'{stop}; resume it: {resume}' if processes.is_main() else None
      raise common.Stop(_PREEMPTED, line) from stop
  if not processes.is_main():
    return iter(())
  return report.closing(
    training.workdir, training.config, training.total_steps, final
  )


def _leave_others(held: contextlib.ExitStack, line: str) -> None:
  """Ends this process at once if it is one of several.

  The others wait for it in the middle of a step; an orderly end would wait for
  them. They end when they notice that it is gone.

  Args:
    held: Context with the lock, which is given back.
    line: Reason, for standard error.
  """
  from abstractinator.runs import processes

  if processes.is_alone():
    return
  held.close()
  sys.stderr.write(f'error: {line}\n')
  sys.stderr.flush()
  # The end of process 0, by which they are connected, would abort the others.
  time.sleep(_GRACE_SECONDS if processes.is_main() else 0)
  os._exit(2)


def _start(
  args: argparse.Namespace,
  settings: 'ml_collections.ConfigDict',
  held: contextlib.ExitStack,
) -> 'tuple[Run, TrainState, Profile]':
  """Opens the run that the flags describe, the same on all processes.

  Only a lock is written before all processes know that the run can start.

  Args:
    args: Arguments of the command.
    settings: Settings of the run.
    held: Context that holds the lock of the directory of the run.
  """
  from abstractinator.runs import compilation_cache, processes
  from abstractinator.runs import workdir as workdirs
  from abstractinator.runs.lock import Lock
  from abstractinator.training.loop import Run
  from abstractinator.training.profile import NO_PROFILE, Profile

  for name in ('workdir', 'resume_from'):
    path = getattr(args, name) or ''
    # The library that writes checkpoints takes UTF-8 alone.
    if '\ufffd' in os.fsencode(path).decode(errors='replace'):
      raise ValueError(f'--{name}: got {path!r}, allowed: a path in UTF-8')
  profile = NO_PROFILE
  if args.profile_steps is not None:
    profile = Profile.parse(args.profile_steps)
  processes.join(args.coordinator_address, args.num_processes, args.process_id)
  processes.require_device()
  # Of several processes jax lets one write, and the others may not see it.
  if args.compilation_cache_dir is not None or processes.is_alone():
    kept = compilation_cache.use(args.compilation_cache_dir)
    if kept is not None and processes.is_main():
      common.say(kept)
  now = datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
  workdir = args.workdir or processes.agree(os.path.join('runs', now))
  for name, text in (
    ('config', settings.to_json_best_effort(sort_keys=True)),
    ('--workdir', workdir),
    ('--profile_steps', args.profile_steps),
    ('--resume_from', args.resume_from),
    ('--resume_step', args.resume_step),
  ):
    processes.require_equal(name, str(text))
  with processes.together():
    config = config_file.run_config(settings)
    if processes.is_main():
      held.enter_context(Lock(workdir))
  with processes.together():
    workdirs.check(workdir, config)
    if processes.is_main():
      source = config.data.train or "Python's standard library"
      sys.stderr.write(f'reading documents: {source}\n')
    opened = Run(config, workdir)
  opened.require_same_data()
  with processes.together():
    state = opened.start(args.resume_from, args.resume_step)
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
