"""`abstractinator plan`: what a run would take on chips not at hand."""

import argparse
import importlib.util
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from abstractinator.commands import common

if TYPE_CHECKING:
  from abstractinator.config import MeshConfig, RunConfig

ABOUT = 'Compiles the training step of a config for a TPU pod or GPUs.'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """See `commands`."""
  parser.add_argument(
    '--config', required=True, help='Python file with a get_config()'
  )
  parser.add_argument(
    '--topology', required=True, help='v5e-256, v5p-128, v6e-8, h100x8, ...'
  )
  parser.add_argument(
    '--mesh',
    action='append',
    metavar='DATA,FSDP,TENSOR',
    help='only this mesh; may be given several times',
  )
  parser.add_argument(
    '--set',
    action='append',
    default=[],
    metavar='PATH=VALUE',
    help='another value of a setting, such as data.batch_size=512',
  )
  common.add_json(parser)


def run(args: argparse.Namespace) -> str:
  """See `commands`."""
  from abstractinator.planning import topology as topologies

  topology = topologies.parse(args.topology)
  topologies.prepare_environment()
  common.be_quiet()
  config = _load(args.config, args.set)
  devices = topologies.devices(topology)
  from abstractinator.planning import plan

  if args.mesh:
    meshes = [_mesh(given) for given in args.mesh]
  else:
    meshes = plan.meshes(
      topology.num_chips,
      config.data.batch_size,
      config.mesh,
      config.microbatches,
    )
  if not meshes:
    raise ValueError(
      f'data.batch_size: got {config.data.batch_size}, allowed: a multiple of'
      f' the {topology.num_chips} chips times microbatches'
      f' ({config.microbatches}), or pass --mesh'
    )
  found = plan.compare(config, topology, devices, meshes, tell=_tell)
  if args.json:
    return json.dumps(found.to_dict())
  return '\n'.join(plan.table(found))


def _tell(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _mesh(text: str) -> 'MeshConfig':
  from abstractinator.config import MeshConfig

  sizes = text.split(',')
  if len(sizes) != 3 or not all(s.isdecimal() and int(s) for s in sizes):
    raise ValueError(
      f'--mesh: got {text!r}, allowed: DATA,FSDP,TENSOR, such as 1,256,1'
    )
  return MeshConfig(*map(int, sizes))


def _load(path: str, edits: list[str]) -> 'RunConfig':
  from abstractinator.config import RunConfig

  path, _, argument = path.partition(':')
  if not (os.path.isfile(path) and path.endswith('.py')):
    raise ValueError(f'--config: got {path!r}, allowed: a Python file')
  # Config files import each other from the directory above theirs.
  sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(path))))
  spec = importlib.util.spec_from_file_location('config', path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config(*filter(None, [argument]))
    values = json.loads(config.to_json_best_effort())
  # The file is the user's own code: anything can happen in it.
  except Exception as error:
    text = ' '.join(str(error).split())
    raise ValueError(
      f'--config: {path}: {type(error).__name__}: {text}, allowed: a Python'
      ' file whose get_config() returns a config'
    ) from error
  for edit in edits:
    _set(values, edit)
  return RunConfig.from_dict(values)


def _set(values: dict[str, Any], edit: str) -> None:
  from abstractinator.config import setting_text

  path, equals, text = edit.partition('=')
  *parents, name = path.split('.')
  node = values
  for parent in parents:
    node = node.get(parent) if isinstance(node, dict) else None
  if not equals or not isinstance(node, dict) or name not in node:
    raise ValueError(
      f'--set: got {edit!r}, allowed: PATH=VALUE of a setting of the config,'
      ' such as data.batch_size=512'
    )
  node[name] = setting_text.parse(text)
