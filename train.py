"""Trains a level: python train.py [--config=FILE] [--workdir=DIR].

python train.py                                     configs/default.py
python train.py --config=configs/tiny.py            another config
python train.py --config.data.train='texts/*.txt'   another value
python train.py --workdir=DIR                       goes on with a run there
python train.py --resume_from=DIR                   goes on elsewhere
python train.py --config=FILE --load_base_from=DIR  with frozen levels of a run
python train.py --profile_steps=100:110             a trace of some steps
python train.py --coordinator_address=HOST:PORT --num_processes=N --process_id=I
                                                    one of N processes
"""

import datetime
import difflib
import importlib.util
import json
import os
import re
import sys

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from abstractinator import huge_pages

# As of a process that SIGTERM ends, so that a scheduler starts it again.
_STOPPED = 143
_CONFIGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'configs')

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Python file with a get_config(); configs/default.py.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of the run; runs/TIME if not given.'
)
_LOAD_BASE_FROM = flags.DEFINE_string(
  'load_base_from', None, 'Short for --config.load_base_from.'
)
_PROFILE_STEPS = flags.DEFINE_string(
  'profile_steps', None, 'START:STOP: steps to trace for TensorBoard.'
)
_COORDINATOR_ADDRESS = flags.DEFINE_string(
  'coordinator_address', None, 'HOST:PORT of process 0, of several processes.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many processes train together.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Which of them this one is, counted from 0.'
)
_COMPILATION_CACHE_DIR = flags.DEFINE_string(
  'compilation_cache_dir',
  None,
  'Where compiled programs are kept for later runs; JAX_COMPILATION_CACHE_DIR'
  ' if not given, and without it nowhere.',
)
_RESUME_FROM = flags.DEFINE_string(
  'resume_from', None, 'Directory of a run to go on from, in a new workdir.'
)

# Flags whose value may follow after a space.
_WITH_VALUE = (
  '--config',
  '--workdir',
  '--resume_from',
  '--load_base_from',
  '--profile_steps',
  '--coordinator_address',
  '--num_processes',
  '--process_id',
  '--compilation_cache_dir',
)


class UserError(Exception):
  """Something in the command that the user can put right."""


def main(argv: list[str]) -> int:
  """Runs; returns the exit status."""
  # jax comes after the flags: a wrong one is answered at once.
  import jax

  from abstractinator.config import RunConfig
  from abstractinator.training import processes, report
  from abstractinator.training import workdir as workdirs
  from abstractinator.training.loop import Run
  from abstractinator.training.profile import NO_PROFILE, Profile

  # Libraries tell much; what matters of a run is on the progress line.
  logging.set_verbosity(logging.WARNING)
  if len(argv) > 1:
    raise UserError(f'{argv[1]}: not a flag; see python train.py --help')
  if _COMPILATION_CACHE_DIR.value is not None:
    jax.config.update('jax_compilation_cache_dir', _COMPILATION_CACHE_DIR.value)
  if _LOAD_BASE_FROM.value is not None:
    _CONFIG.value.load_base_from = _LOAD_BASE_FROM.value
  try:
    profile = NO_PROFILE
    if _PROFILE_STEPS.value is not None:
      profile = Profile.parse(_PROFILE_STEPS.value)
    processes.join(
      _COORDINATOR_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
    workdir = _WORKDIR.value or processes.agree(
      os.path.join('runs', datetime.datetime.now().strftime('%Y%m%d-%H%M%S'))
    )
    values = _CONFIG.value.to_json_best_effort(sort_keys=True)
    for name, text in (
      ('config', values),
      ('--workdir', workdir),
      ('--profile_steps', _PROFILE_STEPS.value),
      ('--resume_from', _RESUME_FROM.value),
    ):
      processes.require_equal(name, str(text))
    with processes.together():
      config = RunConfig.from_dict(json.loads(values))
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
  except processes.REFUSALS as error:
    raise UserError(str(error)) from error
  try:
    final = run.train(state, profile)
  except FloatingPointError as error:
    print(f'train.py: {error}', file=sys.stderr)
    return 1
  except processes.Preempted as stop:
    if processes.is_main():
      print(
        f'train.py: {stop}; go on: python train.py --workdir={workdir}',
        file=sys.stderr,
      )
    return _STOPPED
  if processes.is_main():
    print(report.closing(workdir, config.objective, run.total_steps, final))
  return 0


def parse_flags(argv: list[str]) -> list[str]:
  """The parser of absl, with a config to start from and errors to the point."""
  argv = _with_config(_joined(argv))
  path, _, argument = argv[1].split('=', 1)[1].partition(':')
  if not os.path.isfile(path):
    raise UserError(f'--config: got {path!r}, allowed: a Python file')
  try:
    known = list(_paths(_get_config(path, argument)))
  except Exception as error:
    # The file is the user's own code: anything can happen in it.
    text = ' '.join(str(error).split())
    raise UserError(f'{path}: {type(error).__name__}: {text}') from error
  for arg in argv[2:]:
    name = arg.split('=', 1)[0].removeprefix('--')
    if name.startswith('config.') and name not in known:
      near = difflib.get_close_matches(name, known, n=3) or known[:3]
      raise UserError(
        f'--{name}: unknown setting, allowed: --{", --".join(near)}, ...'
      )
  # The parser of a type knows no None.
  empty = [
    a for a in argv[2:] if a.startswith('--config.') and a.endswith('=None')
  ]
  try:
    rest = flags.FLAGS([a for a in argv if a not in empty])
    for arg in empty:
      _set_none(
        _CONFIG.value, arg.removeprefix('--config.').removesuffix('=None')
      )
  except (flags.Error, IndexError, TypeError, ValueError) as error:
    raise UserError(str(error).split('\n')[0]) from error
  return rest


def _joined(argv: list[str]) -> list[str]:
  """Writes `-flag value` and `--flag value` of our flags as `--flag=value`."""
  joined = [argv[0]]
  rest = iter(argv[1:])
  for arg in rest:
    if arg.startswith('-') and not arg.startswith('--'):
      arg = f'-{arg}'
    if arg in _WITH_VALUE:
      arg = f'{arg}={next(rest, "")}'
    joined.append(arg)
  return joined


def _get_config(path: str, argument: str) -> ml_collections.ConfigDict:
  spec = importlib.util.spec_from_file_location('config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*filter(None, [argument]))


def _with_config(argv: list[str]) -> list[str]:
  """Puts --config first: the given one, a stored run's, or the default."""
  given = [a for a in argv[1:] if a.startswith('--config=')]
  rest = [a for a in argv if a not in given]
  if not given:
    for flag in ('--workdir=', '--resume_from='):
      for arg in rest:
        path = arg.removeprefix(flag)
        if path != arg and os.path.exists(os.path.join(path, 'config.json')):
          given = given or [f'--config={_CONFIGS}/resume.py:{path}']
  given = given or [f'--config={_CONFIGS}/default.py']
  return [rest[0], *given, *rest[1:]]


def _set_none(config: ml_collections.ConfigDict, path: str) -> None:
  """Sets what stands at a path such as model.levels[0].d_model to None."""
  *parents, name = re.findall(r'[^.\[\]]+', path)
  node = config
  for part in parents:
    node = node[int(part)] if part.isdigit() else node[part]
  node[name] = None


def _paths(node, path: str = 'config'):
  if isinstance(node, ml_collections.ConfigDict):
    for key in node:
      yield from _paths(node[key], f'{path}.{key}')
  elif isinstance(node, (list, tuple)) and any(
    isinstance(item, ml_collections.ConfigDict) for item in node
  ):
    for index, item in enumerate(node):
      yield from _paths(item, f'{path}[{index}]')
  else:
    yield path


def _run(argv: list[str]) -> None:
  sys.exit(main(argv))


if __name__ == '__main__':
  huge_pages.ensure()
  try:
    app.run(_run, flags_parser=parse_flags)
  except UserError as error:
    print(f'train.py: error: {error}', file=sys.stderr)
    sys.exit(2)
