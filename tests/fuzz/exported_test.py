"""Files of exported models that are damaged."""

import functools
import json
import tempfile

import jax
import numpy as np
import pytest

from abstractinator.runs import exported
from abstractinator.runs.state import variables_of
from tests.helpers import fuzz, tiny_run
from tests.helpers.saved_states import abstract

# Bytes of the file of arrays in which mutations matter most.
_HEADER = 3000


@functools.cache
def _model():
  """Returns the config, the variables, and the content of the files."""
  config = tiny_run.config()
  variables = variables_of(tiny_run.random_state(config, 3))
  with tempfile.TemporaryDirectory() as folder:
    exported.write(
      folder, config, variables, {'step': 3}, card='', dtype='float32'
    )
    files = {}
    for name in (exported.WEIGHTS, exported.CONFIG):
      with open(f'{folder}/{name}', 'rb') as file:
        files[name] = file.read()
  settings = json.loads(files[exported.CONFIG])
  # The harness allows too little time to find the shapes in a case.
  return settings, jax.device_get(variables), abstract(variables), files


def case(random, folder):
  """The right model or none."""
  settings, variables, target, files = _model()
  changed = random.choice(list(files))
  for name, content in files.items():
    head, rest = content[:_HEADER], content[_HEADER:]
    if name == changed and random.integers(4):
      content = fuzz.mutate(random, head) + rest
    elif name == changed:
      content = fuzz.mutate(random, content)
    (folder / name).write_bytes(content)
  assert exported.read_config(str(folder)) == (3, settings)
  found = exported.restore_variables(str(folder), target)
  jax.tree.map(np.testing.assert_array_equal, found, variables)


@pytest.mark.nightly
def test_exported_models(tmp_path):
  counts = fuzz.run(case, 400, tmp_path, prepare=_model)
  assert counts['refused'] > 200
