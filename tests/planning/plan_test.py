"""Comparison of meshes for a run, and the command that prints it."""

import dataclasses
import json
import types

import jax
import pytest

from abstractinator.cli import main
from abstractinator.config import MeshConfig, RunConfig
from abstractinator.planning import plan
from abstractinator.planning.topology import parse
from tests.helpers import tiny_run


@pytest.mark.parametrize(
  ('num_chips', 'batch_size', 'own', 'expected'),
  [
    (
      256,
      256,
      (1, -1, 1),
      [(1, 256, 1), (256, 1, 1), (16, 16, 1), (1, 64, 4)],
    ),
    # 64 rows for 256 chips: each row is split over four chips.
    (256, 64, (-1, 1, 1), [(1, 64, 4)]),
    (4, 6, (2, 1, 2), [(2, 1, 2), (1, 1, 4)]),
    (1, 3, (-1, 1, 1), [(1, 1, 1)]),
    (4, 5, (3, 1, 1), [(1, 1, 4)]),
  ],
)
def test_meshes(num_chips, batch_size, own, expected):
  assert meshes(num_chips, batch_size, own) == expected


def meshes(num_chips, batch_size, own=(-1, 1, 1), **changes):
  config = tiny_run.config()
  data = dataclasses.replace(config.data, batch_size=batch_size)
  config = dataclasses.replace(
    config, data=data, mesh=MeshConfig(*own), **changes
  )
  return [dataclasses.astuple(x) for x in plan.meshes(config, num_chips)]


def test_every_device_has_a_row_of_every_microbatch():
  assert meshes(4, 8, microbatches=4) == [(1, 1, 4)]
  with pytest.raises(ValueError, match=r'got 4, allowed: a .* the 16 chips'):
    meshes(16, 4, microbatches=4)


HLO = """\
HloModule jit_step, num_partitions=4

ENTRY %main (x: f32[BYTES]) -> f32[BYTES] {
  %x = f32[BYTES]{0} parameter(0)
  ROOT %y = f32[BYTES]{0} all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%s
}
"""


class FakeStep:
  """Fake of `plan.MeshStep`: more data parallelism needs more memory."""

  text = HLO
  state_bytes = 10**9

  def __init__(self, config, mesh, devices, platform):
    self._data = mesh.data

  def compile(self):
    if self._data == 1:
      raise jax.errors.JaxRuntimeError(
        'RESOURCE_EXHAUSTED: no memory. Used 20G of 15.75G hbm. Exceeded'
      )
    # State that is replaced in place counts once.
    memory = types.SimpleNamespace(
      argument_size_in_bytes=10**9,
      output_size_in_bytes=10**9,
      alias_size_in_bytes=10**9,
      temp_size_in_bytes=4 * 10**9 * self._data - 10**9 - 1000,
      generated_code_size_in_bytes=1000,
    )
    return types.SimpleNamespace(
      memory_analysis=lambda: memory,
      as_text=lambda: self.text.replace('BYTES', str(1000 // self._data)),
    )


@pytest.fixture
def compare(monkeypatch):
  """Compares meshes by fake steps, which compute twice the model's FLOPs."""
  sizes = plan.RunSizes(1000, 10**12, 2 * 10**12)
  monkeypatch.setattr(plan, 'MeshStep', FakeStep)
  monkeypatch.setattr(plan, 'run_sizes', lambda config: sizes)

  def run(*meshes, topology='v5e-4', **changes):
    for name, value in changes.items():
      monkeypatch.setattr(FakeStep, name, value)
    meshes = [MeshConfig(*mesh) for mesh in meshes]
    return plan.compare(tiny_run.config(), parse(topology), [], meshes)

  return run


def test_the_fastest_that_fits_is_recommended(compare):
  found = compare((1, 4, 1), (2, 2, 1), (3, 1, 1), (4, 1, 1))
  memory = [c.memory_bytes for c in found.candidates]
  assert memory == [None, 8 * 10**9, 12 * 10**9, 16 * 10**9]
  assert [c.refused for c in found.candidates] == [
    'XLA: Used 20G of 15.75G hbm',
    None,
    None,
    # 16 of 16 GB are used.
    'above 90% of memory',
  ]
  assert found.recommended == MeshConfig(3, 1, 1)
  best = found.candidates[2]
  assert best.roofline.compute == pytest.approx(2e12 / 4 / 197e12)
  assert best.utilisation == pytest.approx(
    1e12 / 4 / 197e12 / best.roofline.step
  )
  text = '\n'.join(plan.table(found))
  assert '--config.mesh.data=3 --config.mesh.fsdp=1' in text
  assert 'does not fit: XLA' in text
  values = json.loads(json.dumps(dataclasses.asdict(found)))
  assert values['recommended']['data'] == 3
  assert values['candidates'][2]['roofline']['step'] == best.roofline.step


@pytest.mark.parametrize(
  ('topology', 'target'),
  [('v5e-4', 'tpu_custom_call'), ('h100x4', '__gpu$xla.gpu.triton')],
)
def test_kernels_are_counted_under_the_name_of_the_platform(
  topology, target, compare
):
  text = f'{HLO}// custom_call_target="{target}"\n'
  found = compare((2, 2, 1), topology=topology, text=text)
  assert found.candidates[0].kernels == 1


def test_a_state_that_is_too_large_is_not_compiled(compare):
  found = compare((2, 2, 1), state_bytes=17 * 10**9)
  assert 'state alone' in found.candidates[0].refused
  assert found.candidates[0].memory_bytes is None
  assert found.recommended is None
  assert 'none fits' in '\n'.join(plan.table(found))


def test_a_batch_that_does_not_divide():
  with pytest.raises(ValueError, match=r'data.batch_size: got 8, allowed'):
    plan.MeshStep(
      tiny_run.config(), MeshConfig(3, 1, 1), jax.devices()[:3], 'tpu'
    )
  config = dataclasses.replace(tiny_run.config(), microbatches=4)
  with pytest.raises(ValueError, match=r'multiple of .* microbatches \(16\)'):
    plan.MeshStep(config, MeshConfig(4, 1, 1), jax.devices()[:4], 'tpu')
  with pytest.raises(ValueError, match=r'mesh\.data=3'):
    plan.MeshStep(
      tiny_run.config(), MeshConfig(3, 1, 1), jax.devices()[:4], 'tpu'
    )


def test_what_is_computed_again_counts_in_the_step_only():
  values = tiny_run.config().to_dict()
  values['model']['implementation']['scan_layers'] = True
  once = plan.run_sizes(RunConfig.from_dict(values))
  values['model']['implementation']['remat'] = 'blocks'
  twice = plan.run_sizes(RunConfig.from_dict(values))
  assert twice.parameters == once.parameters > 10_000
  assert twice.model_flops == once.model_flops <= once.step_flops
  # Blocks run once more, beside the forward pass and twice as many FLOPs for
  # the gradients.
  again = twice.step_flops - once.step_flops
  assert 0.1 < again / twice.model_flops < 1 / 3


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--topology=v5e-5'], '--topology: got'),
    (['--topology=v5e-4', '--config=none.py'], "config: got 'none.py'"),
    (['--topology=v5e-4', '--set=data.rows=3'], 'data.rows: unknown setting'),
    (['--topology=v5e-4', '--set=data.batch_size'], 'got no value, allowed'),
    (['--topology=v5e-4', '--set=data.batch_size=0'], 'data.batch_size: got 0'),
  ],
)
def test_wrong_flags_are_named(args, message, capsys, monkeypatch):
  monkeypatch.setattr(
    'abstractinator.planning.topology.prepare_environment', lambda: None
  )
  config = (
    [] if any('--config' in a for a in args) else ['--config=configs/tiny.py']
  )
  assert main.main(['plan', *config, *args]) == 2
  assert message in capsys.readouterr().err
