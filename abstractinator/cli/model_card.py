"""Model card of an exported model, in Markdown."""

import math
from collections.abc import Mapping

import jax

import abstractinator
from abstractinator.config import LevelConfig, RunConfig
from abstractinator.evaluation import units
from abstractinator.objective.objectives import OBJECTIVES
from abstractinator.training import report
from abstractinator.types import PyTree

_CARD = """\
---
library_name: abstractinator
tags: [abstractinator, jax, bytes]
---

# {name}

A model of Abstractinator {version}, which learns a hierarchy of discrete codes
over bytes. `abstractinator export` wrote it after {step:,} steps of training
with objective `{objective}`.

## Data

- Trained on: {train}
- Held out: {held_out}
- Batches: {rows} rows of {length} ids; {ids:,} ids in all steps, padding
  included

## Sizes

| part | parameters | form |
|---|---|---|
{sizes}

Parameters lie in the file as {dtype}.

## Figures on held-out text

{figures}

## Use

With Abstractinator installed{place_is}:

{commands}
"""
_PYTHON = """
```python
import abstractinator

pyramid = abstractinator.load({place!r})
codes = pyramid.encode(b'some text')
pyramid.decode(codes)
```
"""


def text(
  name: str,
  config: RunConfig,
  variables: Mapping[str, PyTree],
  step: int,
  figures: Mapping[str, float | None],
  *,
  source: str | None,
  dtype: str,
) -> str:
  """Returns the card of a model.

  Args:
    name: Name of the model, its title.
    config: Config of the run.
    variables: Parameters and collections of its model.
    step: Optimizer steps that it was trained for.
    figures: Held-out figures after this step by name; None for one that is not
      finite.
    source: `hf:NAME` if the model is for the hub, else None.
    dtype: Type of the parameters in the file.
  """
  data, place = config.data, source or 'DIR'
  has_codes = OBJECTIVES[config.objective].has_codes
  return _CARD.format(
    name=name,
    version=abstractinator.__version__,
    step=step,
    objective=config.objective,
    train=_source(data.train),
    held_out=_source(data.validation)
    if data.validation
    else f'{100 * data.validation_fraction:g}% of the documents',
    rows=data.batch_size,
    length=data.sequence_length,
    ids=step * data.batch_size * data.sequence_length,
    sizes='\n'.join(_sizes(config, variables['params'])),
    dtype=dtype,
    figures=_figures(figures, dtype),
    place_is='' if source else ', and the directory of this file as DIR',
    commands='\n'.join(
      line
      for use, about in report.next_commands(place, config).items()
      for line in (f'    # {about}', f'    {use}')
    ),
  ) + (_PYTHON.format(place=place) if has_codes else '')


def _source(documents: str) -> str:
  return f'`{documents}`' if documents else "Python's standard library"


def _sizes(config: RunConfig, params: Mapping[str, PyTree]) -> list[str]:
  """Returns the rows of the table of sizes."""
  forms = {
    f'level_{number}': _form(level)
    for number, level in enumerate(config.model.levels)
  }
  if config.model.top_lm is not None:
    top = config.model.top_lm
    forms['top_lm'] = f'{top.d_model} wide, {top.stack.num_layers} blocks'
  counts = {
    part: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
    for part, tree in params.items()
  }
  rows = [
    f'| {part} | {count:,} | {forms.get(part, "")} |'
    for part, count in sorted(counts.items())
  ]
  return [*rows, f'| all | {sum(counts.values()):,} | |']


def _form(level: LevelConfig) -> str:
  quantizer = level.quantizer
  return (
    f'{level.d_model} wide; segments by `{level.segmentation.rule}`;'
    f' {level.pooling.num_queries} of {quantizer.num_codes:,} codes a segment,'
    f' `{quantizer.kind}`'
  )


def _figures(figures: Mapping[str, float | None], dtype: str) -> str:
  """Returns a table of the figures that `train` prints at its end."""
  found = units.figures({k: x for k, x in figures.items() if x is not None})
  if not found:
    return 'The run has no figures of this step.'
  rows = [f'| {label} | {value} |' for label, value in found.items()]
  table = '\n'.join(['| figure | value |', '|---|---|', *rows])
  if dtype == 'float32':
    return table
  return f'{table}\n\nMeasured before parameters were rounded.'
