"""Pictures of runs and measurements, in one style that is legible in grey.

Each function returns a figure of matplotlib, which comes with the extra `docs`:

    plots.curves('RUN').savefig('curves.svg')

`docs/images/make.py` makes the pictures of the documentation with them.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from abstractinator.data.records import import_extra
from abstractinator.runs import metric_lines

if TYPE_CHECKING:
  from matplotlib.figure import Figure

# Lines are told apart by dashes and marks as well as by their grey values.
_LOOKS: tuple[dict[str, Any], ...] = (
  dict(color='#000000', linestyle='-', marker='o'),
  dict(color='#c1440e', linestyle='--', marker='s'),
  dict(color='#2a78b5', linestyle='-.', marker='^'),
  dict(color='#7a9a01', linestyle=':', marker='D'),
  dict(color='#8e6c9e', linestyle=(0, (5, 1, 1, 1, 1, 1)), marker='v'),
)
_STYLE: dict[str, Any] = {
  'axes.grid': True,
  'axes.spines.right': False,
  'axes.spines.top': False,
  'figure.constrained_layout.use': True,
  'font.size': 9,
  'grid.alpha': 0.3,
  'legend.frameon': False,
  'lines.linewidth': 1.4,
  'lines.markersize': 4,
  'savefig.facecolor': 'white',
  # The same figure gives the same file, and text stays text.
  'svg.fonttype': 'none',
  'svg.hashsalt': 'abstractinator',
}
_LIGHT, _DARK, _GREY = '#ffffff', '#d9d9d9', '#666666'

# Labels of the costs that `curves` draws, by the end of their names.
_COSTS = {
  'entropy_model_bits_per_byte': 'entropy model (flat)',
  'expander_bits_per_byte': 'expander, given codes',
  'top_lm_code_bits_per_byte': 'codes',
  'total_bits_per_byte': 'total',
}


@contextlib.contextmanager
def _subplots(*shape: int, **options: Any) -> 'Iterator[tuple[Figure, Any]]':
  """Opens a figure and its plots in the style of this module."""
  plt = import_extra('matplotlib.pyplot', 'docs', 'plots')
  with plt.rc_context(_STYLE):
    figure, axes = plt.subplots(*shape, **options)
    yield figure, axes
    # It is drawn before the style goes; a notebook shows it once.
    figure.canvas.draw()
    plt.close(figure)


class Line(NamedTuple):
  """Points of one line.

  Attributes:
    label: Name in the legend.
    x: Places.
    y: Values.
  """

  label: str
  x: Sequence[float]
  y: Sequence[float]


def lines(
  found: Iterable[Line],
  x_label: str,
  y_label: str,
  *,
  is_logarithmic: bool = False,
) -> 'Figure':
  """Returns lines over common axes.

  Args:
    found: The lines; 5 of them look different.
    x_label: Name and unit of the horizontal axis.
    y_label: Name and unit of the vertical axis.
    is_logarithmic: Whether both axes are logarithmic.
  """
  with _subplots(figsize=(6.0, 3.4)) as (figure, axes):
    for number, line in enumerate(found):
      look = _LOOKS[number % len(_LOOKS)]
      axes.plot(line.x, line.y, label=line.label, **look)
    if is_logarithmic:
      axes.set_xscale('log', base=2)
      axes.set_yscale('log')
      axes.xaxis.set_major_formatter('{x:g}')
    else:
      axes.set_ylim(bottom=0)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.legend()
  return figure


def curves(workdir: str | os.PathLike[str], part: str = 'eval') -> 'Figure':
  """Returns what bytes cost over the steps of a run.

  Args:
    workdir: Directory of the run.
    part: 'eval' for held-out text, 'train' for the text of training steps.

  Raises:
    ValueError: If `metrics.jsonl` has no such costs, or cannot be read.
  """
  points: dict[str, list[tuple[float, float]]] = {}
  for tags in metric_lines.read(workdir):
    for tag, value in tags.items():
      *heads, name = tag.split('/')
      if heads[:1] == [part] and name in _COSTS:
        label = ': '.join([*heads[1:], _COSTS[name]])
        points.setdefault(label, []).append((tags['step'], value))
  if not points:
    path = metric_lines.path_of(workdir)
    raise ValueError(f'{path}: has no bits per byte below {part}/')
  return lines(
    [Line(label, *zip(*xy, strict=True)) for label, xy in points.items()],
    'step',
    'bits/byte',
  )


def cuts(
  text: bytes, starts: Mapping[str, np.ndarray], entropy_bits_N: np.ndarray
) -> 'Figure':
  """Returns a text that several rules cut, a line for each rule.

  Segments are light and grey in turns; below them stands the entropy of the
  prediction of each byte.

  Args:
    text: The text, N bytes.
    starts: True for the bytes that open a segment, [N] bool, by rule.
    entropy_bits_N: Entropy of the prediction of each byte, [N], bits.
  """
  size, count = len(text), len(starts)
  with _subplots(
    2,
    figsize=(0.12 * size + 1.3, 0.28 * count + 0.9),
    height_ratios=(0.28 * count, 0.7),
    sharex=True,
  ) as (figure, (top, bottom)):
    for row, is_start_N in enumerate(starts.values()):
      begin_P = np.flatnonzero(is_start_N)
      length_P = np.diff([*begin_P, size])
      colors = [(_LIGHT, _DARK)[number % 2] for number in range(len(begin_P))]
      top.barh(row, length_P, left=begin_P, height=0.86, color=colors)
      top.vlines(begin_P, row - 0.43, row + 0.43, 'black', lw=0.8)
      for at, byte in enumerate(text):
        top.text(at + 0.5, row, _letter(byte), **_LETTER)
    top.set(xlim=(0, size), ylim=(count - 0.4, -0.6))
    top.set_yticks(range(count), starts)
    bottom.bar(np.arange(size) + 0.5, entropy_bits_N, color=_GREY)
    bottom.set(ylabel='entropy,\nbits', xticks=[])
    top.tick_params(bottom=False, left=False)
    top.spines[:].set_visible(False)
    for axes in (top, bottom):
      axes.grid(visible=False)
  return figure


_LETTER: dict[str, Any] = dict(
  ha='center', va='center', family='monospace', fontsize=8
)


def _letter(byte: int) -> str:
  """Returns a byte as a letter: a space is an open box, others are dots."""
  if byte == ord(' '):
    return '\u2423'
  return chr(byte) if 0x21 <= byte < 0x7F else '\u00b7'


class Result(NamedTuple):
  """A run of `frontier`.

  Attributes:
    group: Name of the runs that make a line.
    code_bits_per_byte: Cost of the codes.
    total_bits_per_byte: Cost of the text by way of its codes.
    flat_bits_per_byte: Cost of the text under a flat model.
    free_running_byte_accuracy: Fraction of bytes right from codes alone.
  """

  group: str
  code_bits_per_byte: float
  total_bits_per_byte: float
  flat_bits_per_byte: float
  free_running_byte_accuracy: float


def frontier(results: Iterable[Result]) -> 'Figure':
  """Returns the total, and the bytes right, over what codes cost."""
  groups: dict[str, list[Result]] = {}
  for result in results:
    groups.setdefault(result.group, []).append(result)
  with _subplots(1, 2, figsize=(7.5, 3.2)) as (figure, (left, right)):
    for number, (group, members) in enumerate(groups.items()):
      look = _LOOKS[number % len(_LOOKS)]
      members.sort(key=lambda x: x.code_bits_per_byte)
      rate = [x.code_bits_per_byte for x in members]
      total = [x.total_bits_per_byte for x in members]
      percent = [100 * x.free_running_byte_accuracy for x in members]
      left.plot(rate, total, label=group, **look)
      right.plot(rate, percent, label=group, **look)
    heights = {x.flat_bits_per_byte for y in groups.values() for x in y}
    for height in sorted(heights):
      left.axhline(height, color=_GREY, linewidth=0.9)
      left.text(0, height, ' flat model', va='bottom', color=_GREY)
    left.set_ylabel('total, bits/byte')
    right.set_ylabel('bytes right from codes alone, %')
    for axes in (left, right):
      axes.set(xlabel='codes, bits/byte')
      axes.set_xlim(left=0)
    left.legend()
  return figure
