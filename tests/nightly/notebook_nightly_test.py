"""The notebook of docs/, executed from its first cell to its last.

pip install -e '.[docs]'
pytest -m nightly tests/nightly/notebook_nightly_test.py -n 0
"""

import os
import pathlib

import pytest

pytestmark = pytest.mark.nightly

ROOT = pathlib.Path(__file__).parents[2]


def test_the_notebook_runs(tmp_path, monkeypatch):
  import nbclient
  import nbformat

  paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join(paths))
  notebook = nbformat.read(ROOT / 'docs/first_steps.ipynb', as_version=4)
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
  assert 'run runs/first_steps: 300 steps done' in said
  assert 'of bytes right from codes alone' in said
  assert 'total_over_flat: ' in said
  kinds = {kind for output in outputs for kind in output.get('data', {})}
  assert 'image/png' in kinds
