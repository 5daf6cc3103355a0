"""The notebook of docs/, executed from its first cell to its last.

pip install -e '.[docs]'
"""

import os
import pathlib

import pytest

from tests.helpers import many_processes, xla_flags

ROOT = pathlib.Path(__file__).parents[1]
# What makes the training of the notebook small, by what it replaces.
_SMALL = {
  'max_steps = 300': 'max_steps = 2',
  'eval_interval = 50': 'eval_interval = 1',
  '  return config': """
  config.eval_batches = config.final_eval_batches = 1
  config.data.sequence_length = 64
  config.data.train = 'CORPUS/*.txt'
  config.model.top_lm.stack.num_layers = 1
  return config""",
}


@pytest.mark.parametrize(
  ('changes', 'steps'),
  [(_SMALL, 2), pytest.param({}, 300, marks=pytest.mark.nightly)],
  ids=['small', 'whole'],
)
def test_the_notebook_runs(changes, steps, tmp_path, monkeypatch):
  nbclient = pytest.importorskip('nbclient')
  nbformat = pytest.importorskip('nbformat')
  paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join(paths))
  monkeypatch.setenv('XLA_FLAGS', ' '.join(xla_flags.QUICK))
  notebook = nbformat.read(ROOT / 'docs/first_steps.ipynb', as_version=4)
  (config,) = [c for c in notebook.cells if c.source.startswith('%%writefile')]
  for old, new in changes.items():
    assert old in config.source
    config.source = config.source.replace(old, new)
  corpus = many_processes.write_corpus(tmp_path)
  config.source = config.source.replace('CORPUS', str(corpus))
  resources = {'metadata': {'path': str(tmp_path)}}
  nbclient.NotebookClient(
    notebook, timeout=900, kernel_name='python3', resources=resources
  ).execute()
  outputs = [
    output
    for cell in notebook.cells
    if cell.cell_type == 'code'
    for output in cell.outputs
  ]
  said = ''.join(output.get('text', '') for output in outputs)
  assert f'run runs/first_steps: {steps} steps done' in said
  assert 'of bytes right from codes alone' in said
  assert 'total_over_flat: ' in said
  kinds = {kind for output in outputs for kind in output.get('data', {})}
  assert 'image/png' in kinds
