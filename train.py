"""Trains a model: python train.py [--config=FILE] [--workdir=DIR].

python train.py                                     trains configs/default.py
python train.py --config=configs/tiny.py            trains another config
python train.py --config.data.train='texts/*.txt'   overrides a setting
python train.py --workdir=DIR                       resumes the run in DIR
python train.py --resume_from=DIR                   resumes it in a new workdir
python train.py --config=FILE --load_base_from=DIR  takes frozen levels from DIR
python train.py --profile_steps=100:110             traces some steps
python train.py --coordinator_address=HOST:PORT --num_processes=N --process_id=I
                                                    is one of N processes
"""

import datetime
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from abstractinator.cli import config_file
from abstractinator.runs import huge_pages

if TYPE_CHECKING:
  from abstractinator.runs.state import TrainState
  from abstractinator.training.loop import Run
  from abstractinator.training.profile import Profile

# Status of a process that SIGTERM ends, so that a scheduler starts it again.
_PREEMPTED = 143

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Python file with a get_config(), or the name of one of configs/. Default:'
  " the run of --workdir or --resume_from if there is one, else 'default'."
  ' --config.PATH=VALUE overrides a setting.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of the run. Default: runs/TIME.'
)
_RESUME_FROM = flags.DEFINE_string(
  'resume_from', None, 'Directory of a run to resume in a new workdir.'
)
_LOAD_BASE_FROM = flags.DEFINE_string(
  'load_base_from', None, 'Alias of --config.load_base_from.'
)
_PROFILE_STEPS = flags.DEFINE_string(
  'profile_steps', None, 'START:STOP, the steps to trace for TensorBoard.'
)
_COORDINATOR_ADDRESS = flags.DEFINE_string(
  'coordinator_address', None, 'HOST:PORT of process 0 of several processes.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Number of processes that train together.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Number of this process, from 0.'
)
_COMPILATION_CACHE_DIR = flags.DEFINE_string(
  'compilation_cache_dir',
  None,
  'Directory in which compiled programs are kept for later runs. Default:'
  ' JAX_COMPILATION_CACHE_DIR, and no cache without that.',
)


def main(argv: list[str]) -> int:
  """Trains; returns the exit status."""
  # The import of jax is slow; a wrong flag is answered before it.
  import jax

  from abstractinator.runs import processes
  from abstractinator.training import report

  # Libraries log a lot; the progress lines say what matters about a run.
  logging.set_verbosity(logging.WARNING)
  if len(argv) > 1:
    _refuse(f'{argv[1]}: not a flag; see python train.py --help')
  if _COMPILATION_CACHE_DIR.value is not None:
    jax.config.update('jax_compilation_cache_dir', _COMPILATION_CACHE_DIR.value)
  if _LOAD_BASE_FROM.value is not None:
    _CONFIG.value.load_base_from = _LOAD_BASE_FROM.value
  try:
    run, state, profile = _start()
  except processes.REFUSALS as error:
    _refuse(str(error))
  try:
    final = run.train(state, profile)
  except FloatingPointError as error:
    print(f'train.py: {error}', file=sys.stderr)
    return 1
  except processes.Preempted as stop:
    if processes.is_main():
      print(
        f'train.py: {stop}; resume it: python train.py --workdir={run.workdir}',
        file=sys.stderr,
      )
    return _PREEMPTED
  if processes.is_main():
    objective = run.config.objective
    print(report.closing(run.workdir, objective, run.total_steps, final))
  return 0


def _start() -> 'tuple[Run, TrainState, Profile]':
  """Opens the run that the flags describe, the same on all processes.

  Nothing is written before all processes know that the run can start.
  """
  from abstractinator.runs import processes
  from abstractinator.runs import workdir as workdirs
  from abstractinator.training.loop import Run
  from abstractinator.training.profile import NO_PROFILE, Profile

  profile = NO_PROFILE
  if _PROFILE_STEPS.value is not None:
    profile = Profile.parse(_PROFILE_STEPS.value)
  processes.join(
    _COORDINATOR_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  )
  now = datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
  workdir = _WORKDIR.value or processes.agree(os.path.join('runs', now))
  for name, text in (
    ('config', _CONFIG.value.to_json_best_effort(sort_keys=True)),
    ('--workdir', workdir),
    ('--profile_steps', _PROFILE_STEPS.value),
    ('--resume_from', _RESUME_FROM.value),
  ):
    processes.require_equal(name, str(text))
  with processes.together():
    config = config_file.run_config(_CONFIG.value)
    workdirs.check(workdir, config)
    run = Run(config, workdir)
  run.require_same_data()
  with processes.together():
    state = run.start(_RESUME_FROM.value)
    if profile.start < profile.stop:
      profile.check(int(state.step), run.total_steps)
  with processes.together():
    if processes.is_main():
      workdirs.claim(workdir, config)
  return run, state, profile


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line; see `app.run`."""
  given = flags.FlagValues()
  source = flags.DEFINE_string('config', None, '', flag_values=given)
  for values in (given, flags.FLAGS):
    values.set_gnu_getopt(True)
  try:
    # The other flags come first: they may name a run, which has the config.
    rest = flags.FLAGS(given(argv, known_only=True), known_only=True)
    config = f'--config={source.value or _default_config()}'
    return config_file.parse([argv[0], config, *rest[1:]], flags.FLAGS)
  except (flags.Error, ValueError) as error:
    _refuse(str(error))


def _default_config() -> str:
  for run in (_WORKDIR.value, _RESUME_FROM.value):
    if run and os.path.exists(os.path.join(run, 'config.json')):
      return f'resume:{run}'
  return 'default'


def _refuse(message: str) -> NoReturn:
  print(f'train.py: error: {message}', file=sys.stderr)
  sys.exit(2)


if __name__ == '__main__':
  huge_pages.ensure()
  app.run(main, flags_parser=parse_flags)
