"""`abstractinator generate`: texts, continued."""

import argparse
import codecs
import itertools
import json
import os
import sys
import warnings
from collections.abc import Iterator

from abstractinator.cli import common

ABOUT = 'Continues a text, as it comes.'

# Of `generation.options.Options`, whose defaults hold for what is not given.
_NUMBERS = {
  'temperature': (float, 'of all that is drawn; 0 takes the most likely'),
  'level_temperature': (float, 'of what levels make of top codes, if another'),
  'top_k': (int, 'keep so many of the most likely; 0 for all'),
  'top_p': (float, 'keep the most likely of this probability; 1 for all'),
  'min_p': (float, 'keep what is so likely relative to the best'),
  'seed': (int, 'of the draws'),
  'num_samples': (int, 'continuations of each prompt'),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """See `commands`."""
  common.add_run(parser)
  parser.add_argument(
    '--prompt', action='append', help='a text; several may be given'
  )
  parser.add_argument(
    '--prompt_file', help='file that holds a prompt; - for standard input'
  )
  parser.add_argument(
    '--max_bytes', type=int, default=256, help='new bytes (%(default)s)'
  )
  for name, (kind, about) in _NUMBERS.items():
    parser.add_argument(f'--{name}', type=kind, help=about)
  parser.add_argument(
    '--stop', action='append', help='a text to end before; several may be given'
  )
  parser.add_argument(
    '--entropy_model_only',
    action='store_true',
    help='continue by the entropy model of the first level, without codes',
  )
  common.add_json(parser)


def run(args: argparse.Namespace) -> str | Iterator[str]:
  """See `commands`."""
  from abstractinator.decoding.options import Options

  options = {
    'max_new_bytes': args.max_bytes,
    'stop': tuple(map(os.fsencode, args.stop or ())),
    'entropy_model_only': args.entropy_model_only,
  }
  for name in _NUMBERS:
    if (value := getattr(args, name)) is not None:
      options[name] = value
  num_samples = Options(**options).num_samples
  prompts = _prompts(args)
  level = common.load(args)
  warnings.showwarning = _warn
  if num_samples == len(prompts) == 1 and not args.json:
    return _stream(level, prompts[0], options)
  samples = level.generate(prompts, **options)
  if args.json:
    return json.dumps(
      [
        {'prompt': common.show(prompt), 'texts': list(map(common.show, texts))}
        for prompt, texts in zip(prompts, samples, strict=True)
      ]
    )
  return '\n---\n'.join(
    common.show(prompt + text)
    for prompt, texts in zip(prompts, samples, strict=True)
    for text in texts
  )


def _stream(level, prompt, options) -> Iterator[str]:
  new = level.stream(prompt, **options)
  first = next(new, b'')
  # A character may begin in the prompt and end in what is new.
  decoder = codecs.getincrementaldecoder('utf-8')('backslashreplace')
  for part in itertools.chain((prompt, first), new):
    yield decoder.decode(part)
  yield decoder.decode(b'', final=True) + '\n'


def _prompts(args: argparse.Namespace) -> list[bytes]:
  """Those given, or one without bytes: the beginning of a document."""
  # Arguments that are no UTF-8 are the bytes they are.
  prompts = [os.fsencode(x) for x in args.prompt or ()]
  if args.prompt_file == '-':
    prompts.append(sys.stdin.buffer.read())
  elif args.prompt_file is not None:
    with open(args.prompt_file, 'rb') as file:
      prompts.append(file.read())
  return prompts or [b'']


def _warn(message, *_, **__) -> None:
  sys.stderr.write(f'abstractinator: warning: {message}\n')
