r"""Maker of the pictures of the documentation, each from a real run.

    pip install -e '.[docs,test]'
    python docs/images/make.py curves RUN
    python docs/images/make.py cuts RUN
    python docs/images/make.py view RUN FILE
    python docs/images/make.py frontier docs/results/frontier.csv
    python docs/images/make.py generation FILE
    python docs/images/make.py length FILE

curves: Costs of held-out text over the steps of a run.
cuts: A sentence cut by each rule, all at one mean length, with the entropies of
  the run's entropy model.
view: The page of `abstractinator view`, as a browser shows it.
frontier: Total and bytes right over the cost of codes. The file has a line for
  each run, with the columns `name` and those of `plots.Result`.
generation: CPU time of a new byte over the length of its context, from `python
  -m abstractinator.benchmarks.generation continue --json=FILE`.
length: Time of a training step on equally many bytes over the length of a row,
  from `python -m abstractinator.benchmarks.step --json=FILE`.

`docs/results/original.csv` has what the original took, where it is known.
"""

import argparse
import csv
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from abstractinator.view import plots

if TYPE_CHECKING:
  import numpy as np
  from matplotlib.figure import Figure

HERE = pathlib.Path(__file__).parent
ORIGINAL = HERE.parent / 'results' / 'original.csv'
_TEXT = 'Segments begin where the next byte is hard to predict, or at words.'
# Thresholds among which the one for a mean length is sought, by rule.
_THRESHOLDS = {
  'entropy_delta': (-8.0, 8.0),
  'entropy_threshold': (0.0, 8.0),
  'equal_information': (0.1, 64.0),
  'stride': (1.0, 16.0),
  'space': (-16.0, 16.0),
}
_NUM_THRESHOLDS = 1024
_MAX_LENGTH = 16


def curves(args: argparse.Namespace) -> 'Figure':
  """Returns the curves of a run."""
  return plots.curves(args.source, args.part)


def cuts(args: argparse.Namespace) -> 'Figure':
  """Returns a sentence cut by each rule."""
  import abstractinator

  text = args.text.encode()
  level = abstractinator.load(args.source).inspect(text).levels[0]
  bits = level.entropy_bits_N[: len(text)], level.cost_bits_N[: len(text)]
  starts = {
    rule: starts_of(rule, text, *bits, args.mean_length) for rule in _THRESHOLDS
  }
  return plots.cuts(text, starts, bits[0])


def starts_of(
  rule: str,
  text: bytes,
  entropy_bits_N: 'np.ndarray',
  surprisal_bits_N: 'np.ndarray',
  mean_length: float,
) -> 'np.ndarray':
  """Divides a text by a rule, with the threshold that fits a mean length best.

  Args:
    rule: Name of the rule.
    text: The text, N bytes.
    entropy_bits_N: Entropy of the prediction of each byte, [N].
    surprisal_bits_N: Surprisal of each byte, [N].
    mean_length: Wanted mean bytes of a segment.

  Returns:
    True for the bytes that open a segment, [N] bool.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from abstractinator.ops import segmentation, segmentation_rules

  ids_BS = jnp.asarray(np.frombuffer(text, np.uint8), jnp.int32)[None]
  document_BS = jnp.zeros_like(ids_BS)
  known = segmentation.known_before(
    *(ids_BS, document_BS), entropy_bits_N[None], surprisal_bits_N[None]
  )

  def divide(threshold: jax.Array) -> jax.Array:
    policy = segmentation_rules.Policy(threshold, rule, 1, _MAX_LENGTH)
    wishes = segmentation_rules.wishes(known, policy)
    return segmentation.segment(
      *(wishes, document_BS),
      min_length=1,
      max_length=_MAX_LENGTH,
      num_slots=len(text),
    ).is_start_BS[0]

  thresholds = jnp.linspace(*_THRESHOLDS[rule], _NUM_THRESHOLDS)
  starts = np.asarray(jax.lax.map(divide, thresholds))
  length = len(text) / starts.sum(axis=1)
  return starts[np.argmin(np.abs(length - mean_length))]


def view(args: argparse.Namespace) -> None:
  """Takes a picture of the page of a text."""
  from abstractinator.cli import main
  from abstractinator.data.records import import_extra

  webdriver = import_extra('selenium.webdriver', 'test', 'view')
  options = webdriver.ChromeOptions()
  for flag in ('--headless=new', '--no-sandbox', '--hide-scrollbars'):
    options.add_argument(flag)
  options.add_argument(f'--window-size={args.width},{args.height}')
  with tempfile.TemporaryDirectory() as folder:
    page = pathlib.Path(folder, 'page.html')
    if main.main(['view', args.source, args.file, f'--html={page}']):
      sys.exit(2)
    with webdriver.Chrome(options=options) as browser:
      browser.get(page.as_uri())
      if not browser.save_screenshot(args.out):
        raise OSError(f'{args.out}: cannot be written')


def frontier(args: argparse.Namespace) -> 'Figure':
  """Returns rate against total and against bytes right."""
  results = []
  with open(args.source, encoding='utf-8', newline='') as file:
    for number, row in enumerate(csv.DictReader(file), start=2):
      try:
        group, *costs = (row[name] for name in plots.Result._fields)
        results.append(plots.Result(group, *map(float, costs)))
      except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
          f'{args.source}: line {number}: {error}, allowed: the columns'
          f' {", ".join(plots.Result._fields)}'
        ) from error
  if not results:
    raise ValueError(f'{args.source}: has no runs, allowed: at least 1')
  return plots.frontier(results)


def generation(args: argparse.Namespace) -> 'Figure':
  """Returns CPU time of a new byte over the length of the context."""
  rows = [row for row in _rows(args.source) if row.get('rows') == 1]
  return plots.lines(
    [
      _line('with caches', rows, 'context', 'CPU-ms/byte'),
      _line('one whole pass a byte', rows, 'context', 'anew, CPU-ms/byte'),
      *_original('generation'),
    ],
    'context, bytes',
    'CPU time of a new byte, ms',
    is_logarithmic=True,
  )


def length(args: argparse.Namespace) -> 'Figure':
  """Returns the time of a step over the length of a row."""
  rows = [row for row in _rows(args.source) if row['config'] != _PLAIN]
  found = _line('this project', rows, 'S', 'step ms')
  return plots.lines(
    [found, *_original('length')], 'bytes of a row', 'time of a step, ms'
  )


# Row of the step benchmark that is no config.
_PLAIN = 'plain transformer'


def _rows(path: str) -> list[dict]:
  """Reads the JSON lines of a benchmark."""
  text = pathlib.Path(path).read_text(encoding='utf-8')
  return [json.loads(line) for line in text.splitlines()]


def _line(label: str, rows: Iterable[dict], x: str, y: str) -> plots.Line:
  points = sorted((row[x], row[y]) for row in rows)
  return plots.Line(label, *zip(*points, strict=True))


def _original(what: str) -> list[plots.Line]:
  """Returns the line of the original, none if nothing is known of it."""
  with ORIGINAL.open(encoding='utf-8', newline='') as file:
    rows = [row for row in csv.DictReader(file) if row['what'] == what]
  points = [{k: float(row[k]) for k in ('x', 'value')} for row in rows]
  return [_line('the original', points, 'x', 'value')] if points else []


_COMMANDS = {
  f.__name__: f for f in (curves, cuts, view, frontier, generation, length)
}


def main(argv: Sequence[str]) -> None:
  """Makes a picture."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('what', choices=_COMMANDS)
  parser.add_argument('source', help='directory of a run, or file of figures')
  parser.add_argument('file', nargs='?', help='view: file with the text')
  parser.add_argument('--out', help='default: docs/images/WHAT.svg or .png')
  parser.add_argument('--part', default='eval', choices=('eval', 'train'))
  parser.add_argument('--text', default=_TEXT, help='cuts: the sentence')
  parser.add_argument('--mean_length', type=float, default=4.5, help='cuts')
  parser.add_argument('--width', type=int, default=1100, help='view: pixels')
  parser.add_argument('--height', type=int, default=620, help='view: pixels')
  args = parser.parse_args(argv)
  if (args.file is None) == (args.what == 'view'):
    parser.error('FILE: allowed: with view alone, which needs it')
  ending = 'png' if args.what == 'view' else 'svg'
  args.out = args.out or str(HERE / f'{args.what}.{ending}')
  try:
    figure = _COMMANDS[args.what](args)
    if figure is not None:
      figure.savefig(args.out, metadata={'Date': None}, dpi=150)
  except (OSError, ValueError) as error:
    parser.error(str(error))
  print(args.out)


if __name__ == '__main__':
  main(sys.argv[1:])
