import dataclasses
import json

import pytest

from abstractinator import cli
from abstractinator.commands import plan as plan_command
from abstractinator.config import MeshConfig, RunConfig
from abstractinator.planning import compiled, plan
from abstractinator.planning.topology import parse
from tests import tiny_run


@pytest.mark.parametrize(
  ('num_chips', 'batch_size', 'own', 'expected'),
  [
    (
      256,
      256,
      (1, -1, 1),
      [(1, 256, 1), (256, 1, 1), (16, 16, 1), (1, 64, 4)],
    ),
    # Rows for a quarter of the chips: a row is split over four.
    (256, 64, (-1, 1, 1), [(1, 64, 4)]),
    (4, 6, (2, 1, 2), [(2, 1, 2), (1, 1, 4)]),
    (1, 3, (-1, 1, 1), [(1, 1, 1)]),
    (4, 5, (3, 1, 1), [(1, 1, 4)]),
  ],
)
def test_meshes(num_chips, batch_size, own, expected):
  found = plan.meshes(num_chips, batch_size, MeshConfig(*own))
  assert [dataclasses.astuple(mesh) for mesh in found] == expected


def test_every_device_has_a_row_of_every_microbatch():
  found = plan.meshes(4, 8, MeshConfig(-1, 1, 1), microbatches=4)
  assert [dataclasses.astuple(mesh) for mesh in found] == [(1, 1, 4)]


HLO = """\
HloModule jit_step, num_partitions=4

ENTRY %main (x: f32[BYTES]) -> f32[BYTES] {
  %x = f32[BYTES]{0} parameter(0)
  ROOT %y = f32[BYTES]{0} all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%s
}
"""


class FakeStep:
  """In place of `compiled.Step`: more data parallelism, more memory."""

  def __init__(self, config, mesh, devices, platform):
    self._data = mesh.data

  def state_bytes(self):
    return 10**10 * self._data

  def compile(self):
    if self._data == 1:
      raise compiled.OutOfMemoryError('Used 20G of 15.75G hbm')
    size = 1000 // self._data
    return compiled.Compiled(
      self.state_bytes(),
      int(4e9) * self._data,
      1.0,
      HLO.replace('BYTES', str(size)),
    )


def test_the_fastest_that_fits_is_recommended(monkeypatch):
  monkeypatch.setattr(compiled, 'Step', FakeStep)
  monkeypatch.setattr(FakeStep, 'state_bytes', lambda self: 10**9)
  sizes = compiled.Sizes(1000, 10**12, 2 * 10**12)
  monkeypatch.setattr(compiled, 'sizes', lambda config: sizes)
  meshes = [
    MeshConfig(*m) for m in ((1, 4, 1), (2, 2, 1), (3, 1, 1), (4, 1, 1))
  ]
  found = plan.compare(tiny_run.config(), parse('v5e-4'), [], meshes)
  fits = {c.mesh.data: c.refused for c in found.candidates}
  assert fits[1] == 'XLA: Used 20G of 15.75G hbm'
  assert (fits[2], fits[3]) == (None, None)
  # 16 of 16 GB are too many.
  assert 'above 90%' in fits[4]
  assert found.recommended == MeshConfig(3, 1, 1)
  best = found.candidates[2]
  assert best.roofline.compute == pytest.approx(2e12 / 4 / 197e12)
  assert best.utilisation == pytest.approx(
    1e12 / 4 / 197e12 / best.roofline.step
  )
  text = '\n'.join(plan.table(found))
  assert '--config.mesh.data=3 --config.mesh.fsdp=1' in text
  assert 'does not fit: XLA' in text
  assert json.loads(json.dumps(found.to_dict()))['recommended']['data'] == 3


@pytest.mark.parametrize(
  ('topology', 'target'),
  [('v5e-4', 'tpu_custom_call'), ('h100x4', '__gpu$xla.gpu.triton')],
)
def test_kernels_are_counted_under_the_name_of_the_platform(
  topology, target, monkeypatch
):
  text = HLO.replace('BYTES', '8') + f'// custom_call_target="{target}"\n'
  result = compiled.Compiled(1, 1, 1.0, text)
  monkeypatch.setattr(compiled, 'Step', FakeStep)
  monkeypatch.setattr(FakeStep, 'compile', lambda self: result)
  sizes = compiled.Sizes(1, 1, 1)
  monkeypatch.setattr(compiled, 'sizes', lambda config: sizes)
  meshes = [MeshConfig(1, 4, 1)]
  found = plan.compare(tiny_run.config(), parse(topology), [], meshes)
  assert found.candidates[0].kernels == 1


def test_a_state_that_is_too_large_is_not_compiled(monkeypatch):
  monkeypatch.setattr(compiled, 'Step', FakeStep)
  sizes = compiled.Sizes(1, 1, 1)
  monkeypatch.setattr(compiled, 'sizes', lambda config: sizes)
  found = plan.compare(
    tiny_run.config(), parse('v5e-4'), [], [MeshConfig(2, 2, 1)]
  )
  assert 'state alone' in found.candidates[0].refused
  assert found.recommended is None
  assert 'none fits' in '\n'.join(plan.table(found))


def test_a_batch_that_does_not_divide():
  import jax

  with pytest.raises(ValueError, match=r'data.batch_size: got 8, allowed'):
    compiled.Step(
      tiny_run.config(), MeshConfig(3, 1, 1), jax.devices()[:3], 'tpu'
    )
  config = dataclasses.replace(tiny_run.config(), microbatches=4)
  with pytest.raises(ValueError, match=r'multiple of .* microbatches \(16\)'):
    compiled.Step(config, MeshConfig(4, 1, 1), jax.devices()[:4], 'tpu')
  with pytest.raises(ValueError, match=r'mesh\.data=3'):
    compiled.Step(
      tiny_run.config(), MeshConfig(3, 1, 1), jax.devices()[:4], 'tpu'
    )


def test_what_is_computed_again_counts_in_the_step_only():
  values = tiny_run.config().to_dict()
  values['model']['implementation']['scan_layers'] = True
  once = compiled.sizes(RunConfig.from_dict(values))
  values['model']['implementation']['remat'] = 'blocks'
  twice = compiled.sizes(RunConfig.from_dict(values))
  assert twice.parameters == once.parameters > 10_000
  assert twice.model_flops == once.model_flops <= once.step_flops
  # Blocks a fourth time, beside their own and twice as much for gradients.
  again = twice.step_flops - once.step_flops
  assert 0.1 < again / twice.model_flops < 1 / 3


def test_a_setting_is_a_value_of_python_too():
  values = {'model': {'scan_layers': False}}
  plan_command._set(values, 'model.scan_layers=True')
  assert values == {'model': {'scan_layers': True}}


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--topology=v5e-5'], '--topology: got'),
    (['--topology=v5e-4', '--config=none.py'], "--config: got 'none.py'"),
    (['--topology=v5e-4', '--set=data.rows=3'], "--set: got 'data.rows=3'"),
    (['--topology=v5e-4', '--set=data.batch_size'], '--set: got'),
    (['--topology=v5e-4', '--set=data.batch_size=0'], 'data.batch_size: got 0'),
  ],
)
def test_wrong_commands(args, message, capsys, monkeypatch):
  monkeypatch.setattr(
    'abstractinator.planning.topology.prepare_environment', lambda: None
  )
  config = (
    [] if any('--config' in a for a in args) else ['--config=configs/tiny.py']
  )
  assert cli.main(['plan', *config, *args]) == 2
  assert message in capsys.readouterr().err
