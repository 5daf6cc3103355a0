"""Tests of `docs/kernels/make.py`, which writes parts of `docs/kernels.md`."""

import dataclasses
import importlib.util
import json
import pathlib
import typing

import pytest

from abstractinator.config import ImplementationConfig
from abstractinator.ops.implementation import OPS, resolve_implementations
from abstractinator.ops.support import PLATFORMS

PATH = pathlib.Path(__file__).parents[2] / 'docs/kernels/make.py'
SPEC = importlib.util.spec_from_file_location('make', PATH)
make = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make)


def test_the_page_is_up_to_date():
  written = make.PAGE.read_text()
  assert '## `attention`' in written
  assert '### attention_h200' in written
  assert written == make.document(written), 'run python docs/kernels/make.py'


@pytest.mark.parametrize('platform', PLATFORMS)
def test_settings_are_what_is_supported(platform):
  """Every op has a table, and a platform takes just what stands in it."""
  settings = typing.get_type_hints(ImplementationConfig)
  how_stacks_run = {'remat', 'scan_layers'}
  assert set(OPS) | how_stacks_run == set(settings)
  for op, support in OPS.items():
    found = set()
    for name in typing.get_args(settings[op]):
      auto = ImplementationConfig.everywhere('auto')
      given = dataclasses.replace(auto, **{op: name})
      try:
        found.add(getattr(resolve_implementations(given, platform), op))
      except ValueError:
        continue
    assert found == {n for n, s in support.items() if platform in s.platforms}


def test_tables_of_a_run_are_told_apart_by_their_columns(tmp_path):
  about = dict(command='python -m b', device='2 cores', jax='0')
  rows = [dict(op='a', ms=1.0), dict(op='b', ms=2.0), dict(op='a', bytes=3)]
  lines = [json.dumps(about | row) for row in rows]
  (tmp_path / 'run.jsonl').write_text('\n'.join(lines))
  text = make.measurements(tmp_path)
  assert text.startswith(
    '### run\n\n    python -m b\n\nHardware: 2 cores, jax 0'
  )
  assert text.count('| op | ') == 2
  assert '| b  |  2 |\n\n| op | bytes |' in text
  (tmp_path / 'run.jsonl').write_text(
    '\n'.join([*lines, json.dumps(about | dict(jax='1', op='a'))])
  )
  with pytest.raises(ValueError, match=r'run\.jsonl: got lines of 2 runs'):
    make.measurements(tmp_path)
