"""Command `abstractinator generate`."""

import argparse
import codecs
import itertools
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from abstractinator.cli import common
from abstractinator.decoding.options import Options

if TYPE_CHECKING:
  from abstractinator.inference import TrainedPyramid

EXAMPLE = "abstractinator generate RUN --prompt='def main(' --max_bytes=200"
# Fields of `Options` that are numbers, which have the defaults of `Options`.
_NUMBERS = {
  'temperature': (
    float,
    'divisor of the logits of codes and bytes; 0 takes the most likely ones',
  ),
  'level_temperature': (
    float,
    'temperature of the ids that levels decode from top codes; None takes'
    ' --temperature',
  ),
  'top_k': (int, 'number of most likely values that are kept; 0 for all'),
  'top_p': (
    float,
    'total probability of the most likely values that are kept; 1 for all',
  ),
  'min_p': (
    float,
    'least probability that is kept, relative to the most likely value',
  ),
  'seed': (int, 'seed of the random numbers'),
  'num_samples': (int, 'number of continuations of each prompt'),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `abstractinator generate`."""
  common.add(parser, 'workdir', '--step')
  parser.add_argument(
    '--prompt',
    action='append',
    help='text to continue; may be given several times; default: the beginning'
    ' of a document',
  )
  parser.add_argument(
    '--prompt_file',
    type=os.path.expanduser,
    help='file with a text to continue, - for standard input; default: none',
  )
  parser.add_argument(
    '--max_bytes',
    type=int,
    default=Options.max_new_bytes,
    help='number of new bytes after which a text ends; default: %(default)s',
  )
  for name, (kind, about) in _NUMBERS.items():
    parser.add_argument(
      f'--{name}',
      type=kind,
      default=getattr(Options, name),
      help=f'{about}; default: %(default)s',
    )
  parser.add_argument(
    '--stop',
    action='append',
    help='string before which a text ends; may be given several times; default:'
    ' none',
  )
  common.add(parser, '--entropy_model_only', '--json')


def run(args: argparse.Namespace) -> str | Iterator[str]:
  """Continues texts; a single one is printed while it is generated."""
  options = {
    'max_new_bytes': args.max_bytes,
    'stop': tuple(map(os.fsencode, args.stop or ())),
    'entropy_model_only': args.entropy_model_only,
    **{name: getattr(args, name) for name in _NUMBERS},
  }
  Options(**options)  # Raises ValueError before anything is read.
  prompts = _prompts(args)
  pyramid = common.load(args)
  warnings.showwarning = _warn
  has_first = pyramid.config.model.top_lm is not None or args.entropy_model_only
  if all(prompts) and not has_first:
    _warn(
      'this run has no top LM, so the last code of the prompt repeats; train a'
      ' config with one, such as tiny_2level, or generate with'
      ' --entropy_model_only'
    )
  if args.num_samples == len(prompts) == 1 and not args.json:
    return _stream(pyramid, prompts[0], options)
  samples = pyramid.generate(prompts, **options)
  return common.answer(
    args,
    [
      {'prompt': common.show(prompt), 'texts': list(map(common.show, texts))}
      for prompt, texts in zip(prompts, samples, strict=True)
    ],
    '\n---\n'.join(
      common.show(prompt + text)
      for prompt, texts in zip(prompts, samples, strict=True)
      for text in texts
    ),
  )


def _stream(
  pyramid: 'TrainedPyramid', prompt: bytes, options: dict[str, Any]
) -> Iterator[str]:
  """Yields a prompt and its continuation, part by part."""
  new = pyramid.stream(prompt, **options)
  first = next(new, b'')
  # A character may begin in the prompt and end in the new bytes.
  decoder = codecs.getincrementaldecoder('utf-8')('backslashreplace')
  for part in itertools.chain((prompt, first), new):
    yield decoder.decode(part)
  yield decoder.decode(b'', final=True) + '\n'


def _prompts(args: argparse.Namespace) -> list[bytes]:
  """Returns the given prompts, or an empty one, which begins a document."""
  # Arguments that are not UTF-8 keep their bytes.
  prompts = [os.fsencode(x) for x in args.prompt or ()]
  if args.prompt_file is not None:
    prompts.append(common.read_bytes(args.prompt_file))
  return prompts or [b'']


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
  sys.stderr.write(f'abstractinator: warning: {message}\n')
