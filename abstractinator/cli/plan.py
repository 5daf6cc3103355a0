"""Command `abstractinator plan`."""

import argparse
import dataclasses

from abstractinator.cli import common, config_file
from abstractinator.config import MeshConfig

EXAMPLE = 'abstractinator plan --config=base --topology=v5e-8'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator plan`."""
  parser.add_argument(
    '--config',
    required=True,
    help='Python file with a get_config(), or the name of one of configs/',
  )
  parser.add_argument(
    '--topology',
    required=True,
    help='kind and number of chips: v5e-256, v5p-128, v6e-8, h100x8, ...',
  )
  parser.add_argument(
    '--mesh',
    action='append',
    metavar='DATA,FSDP,TENSOR',
    help='mesh to compile for; may be given several times; default: several'
    ' meshes that suit the batch',
  )
  config_file.add_overrides(parser)
  common.add(parser, '--json')


def run(args: argparse.Namespace) -> str:
  """Compiles the training step of a config for TPUs or GPUs not at hand."""
  from abstractinator.planning import topology as topologies

  topology = topologies.parse(args.topology)
  topologies.prepare_environment()
  common.be_quiet()
  config = config_file.load(args.config, args.set)
  devices = topologies.devices(topology)
  from abstractinator.planning import plan

  if args.mesh:
    meshes = [_mesh(given) for given in args.mesh]
  else:
    meshes = plan.meshes(config, topology.num_chips)
  found = plan.compare(config, topology, devices, meshes)
  return common.answer(
    args, dataclasses.asdict(found), '\n'.join(plan.table(found))
  )


def _mesh(text: str) -> MeshConfig:
  sizes = text.split(',')
  if len(sizes) != 3 or not all(s.isdecimal() and int(s) for s in sizes):
    raise ValueError(
      f'--mesh: got {text!r}, allowed: DATA,FSDP,TENSOR, such as 1,256,1'
    )
  return MeshConfig(*map(int, sizes))
