"""Command `abstractinator export`."""

import argparse
import os

from abstractinator.cli import common
from abstractinator.data.extras import import_extra

EXAMPLE = 'abstractinator export RUN model --dtype=bfloat16'


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator export`."""
  common.add(parser, 'workdir', '--step')
  parser.add_argument(
    'dir',
    type=os.path.expanduser,
    help='directory to write to, new or empty',
  )
  common.add(parser, '--force')
  parser.add_argument(
    '--dtype',
    choices=('float32', 'bfloat16'),
    default='float32',
    help='type to write parameters in; bfloat16 halves the file and rounds'
    ' them, and those that were rounded before stay so; default: %(default)s',
  )
  parser.add_argument(
    '--push_to_hub',
    metavar='NAME',
    help='name on the Hugging Face Hub, owner/model, to upload the directory'
    ' to; default: none',
  )


def run(args: argparse.Namespace) -> str:
  """Writes a trained model to a directory that can be shared."""
  common.prepare()
  from abstractinator.runs import exported

  exported.require_room(args.dir, force=args.force)
  common.say(f'loading {args.workdir}')
  from abstractinator.cli import model_card
  from abstractinator.runs import hub, load, workdir

  if args.push_to_hub is not None:
    # What is missing is told before any work is done.
    import_extra('huggingface_hub', 'hub', '--push_to_hub')
  source = load.open_source(args.workdir, args.step)
  variables = source.all_variables()
  dtype = args.dtype
  if workdir.is_exported(source.path) and dtype == 'float32':
    dtype = exported.dtype_of(source.path)
  line = exported.held_out(source.path, source.step)
  name = args.push_to_hub or os.path.basename(os.path.abspath(args.dir))
  card = model_card.text(
    name,
    source.config,
    variables,
    source.step,
    {k.removeprefix('eval/'): x for k, x in line.items() if '/' in k},
    source=f'{hub.PREFIX}{name}' if args.push_to_hub else None,
    dtype=dtype,
  )
  exported.write(
    args.dir,
    source.config,
    variables,
    line,
    card=card,
    dtype=dtype,
  )
  paths = [os.path.join(args.dir, name) for name in exported.FILES]
  size = sum(map(os.path.getsize, paths))
  told = f'{args.dir}: step {source.step}, {size / 1e6:.2f} MB'
  if args.push_to_hub is None:
    return told
  common.say(f'uploading to {args.push_to_hub}')
  return f'{told}\n{hub.push(args.dir, args.push_to_hub)}'
