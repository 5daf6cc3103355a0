"""Names of topologies, and devices to compile for."""

import pytest

from abstractinator.planning import topology
from abstractinator.runs.chips import CHIPS


@pytest.mark.parametrize(
  ('name', 'chip', 'shape'),
  [
    ('v5e-256', 'v5e', (16, 16)),
    ('v5e-8', 'v5e', (2, 4)),
    # The number counts cores, of which a chip has two.
    ('v5p-128', 'v5p', (4, 4, 4)),
    ('v5p-8', 'v5p', (2, 2, 1)),
    ('v6e-1', 'v6e', (1, 1)),
    ('h100x8', 'h100', (1, 8)),
    ('h100x16', 'h100', (2, 8)),
  ],
)
def test_names(name, chip, shape):
  found = topology.parse(name)
  assert (found.chip, found.shape) == (CHIPS[chip], shape)
  assert found.platform == ('gpu' if chip == 'h100' else 'tpu')


@pytest.mark.parametrize(
  ('name', 'allowed'),
  [
    ('v5e-12', 'v5e-1, v5e-4'),
    ('v9z-8', 'v5e-N, v6e-N, v5p-N'),
    ('v5e:4x4', 'v5e-256'),
    ('h100x0', '1 to 8'),
    ('h100x12', 'a multiple of'),
    ('', 'v5e-N'),
  ],
)
def test_a_wrong_name_says_what_is_allowed(name, allowed):
  with pytest.raises(ValueError, match=r'^--topology: got') as error:
    topology.parse(name)
  assert allowed in str(error.value)


def test_a_missing_compiler_names_the_extra(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r'\[tpu-plan\]'):
    topology.devices(topology.parse('v5e-4'))


def test_the_gpu_target_has_the_numbers_of_the_card():
  text = topology.gpu_target(CHIPS['h100'])
  assert 'name: "NVIDIA H100 80GB HBM3"' in text
  assert 'device_memory_size: 80000000000' in text
  assert text.count('{') == text.count('}') == 3
