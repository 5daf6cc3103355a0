"""Meshes of a topology compared, by the programs compiled for them."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from abstractinator.config import MeshConfig, RunConfig
from abstractinator.planning import compiled, cost, hlo
from abstractinator.planning.topology import Topology

# What is not to be exceeded: fragments and the runtime need the rest.
MEMORY_FRACTION = 0.9
# What a program calls a Pallas kernel.
_KERNELS = {'tpu': 'tpu_custom_call', 'gpu': '__gpu$xla.gpu.triton'}


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A mesh and what a step takes on it; all of one chip.

  Attributes:
    mesh: Sizes of its axes.
    state_bytes: Of the state.
    refused: Why it does not fit, None if it does.
    memory_bytes: At the fullest point of a step. This and what follows is None
      if it was not compiled, or did not fit the compiler.
    compile_seconds: To compile it.
    kernels: How many Pallas kernels are in the program.
    unbounded_loops: Loops of unknown length, which are counted once.
    traffic_bytes: See `cost.memory_traffic`.
    collectives: By kind.
    roofline: Seconds by what limits them.
    utilisation: Of the peak, by the matrix products of the model, at most.
  """

  mesh: MeshConfig
  state_bytes: int
  refused: str | None = None
  memory_bytes: int | None = None
  compile_seconds: float | None = None
  kernels: int | None = None
  unbounded_loops: int | None = None
  traffic_bytes: int | None = None
  collectives: dict[str, cost.Collective] | None = None
  roofline: cost.Roofline | None = None
  utilisation: float | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run would take on a topology.

  Attributes:
    topology: Which.
    batch_size: Rows of a step.
    sequence_length: Ids of a row.
    sizes: On any chips.
    candidates: Meshes that were compared.
    recommended: That with the least time a step of those that fit; None if
      none does.
  """

  topology: Topology
  batch_size: int
  sequence_length: int
  sizes: compiled.Sizes
  candidates: tuple[Candidate, ...]
  recommended: MeshConfig | None

  def to_dict(self) -> dict[str, Any]:
    """Ready for JSON."""
    values = dataclasses.asdict(self)
    for entry, candidate in zip(
      values['candidates'], self.candidates, strict=True
    ):
      if candidate.roofline is not None:
        entry['roofline']['step'] = candidate.roofline.step
        entry['roofline']['step_in_turn'] = candidate.roofline.step_in_turn
    return values


def meshes(
  num_chips: int, batch_size: int, own: MeshConfig, microbatches: int = 1
) -> list[MeshConfig]:
  """Meshes worth a comparison: the run's own first, then the usual ones.

  Args:
    num_chips: Of the topology.
    batch_size: Rows of a step, which a mesh has to divide.
    own: Of the run; left out if it does not fit.
    microbatches: Parts of a step, of each of which every device has a row.

  Returns:
    Each once, without -1.
  """
  half = 1
  while half * half < num_chips:
    half *= 2
  found = [
    (num_chips, 1, 1),
    (1, num_chips, 1),
    (num_chips // half, half, 1),
    (1, num_chips // 4, 4),
  ]
  sizes = dataclasses.astuple(own)
  known = 1
  for size in sizes:
    known *= 1 if size == -1 else size
  found.insert(0, tuple(num_chips // known if s == -1 else s for s in sizes))
  return [
    MeshConfig(*sizes)
    for sizes in dict.fromkeys(found)
    if min(sizes) > 0
    and sizes[0] * sizes[1] * sizes[2] == num_chips
    and batch_size % (sizes[0] * sizes[1] * microbatches) == 0
  ]


def compare(
  config: RunConfig,
  topology: Topology,
  devices: Sequence[jax.Device],
  candidates: Sequence[MeshConfig],
  tell: Callable[[str], None] = lambda line: None,
) -> Plan:
  """Compiles a step for each mesh.

  Args:
    config: The run.
    topology: Of the devices.
    devices: From `topology.devices`.
    candidates: Meshes.
    tell: Takes a line before each compilation.

  Returns:
    What each takes.

  Raises:
    ValueError: If a mesh does not fit the topology or the batch.
  """
  sizes = compiled.sizes(config)
  found = []
  for mesh in candidates:
    step = compiled.Step(config, mesh, devices, topology.platform)
    tell(f'compiling for mesh {show(mesh)}')
    found.append(_candidate(step, mesh, topology, sizes))
  fitting = [c for c in found if c.refused is None]
  best = min(fitting, key=lambda c: c.roofline.step_in_turn, default=None)
  return Plan(
    topology,
    config.data.batch_size,
    config.data.sequence_length,
    sizes,
    tuple(found),
    best and best.mesh,
  )


def _candidate(
  step: compiled.Step,
  mesh: MeshConfig,
  topology: Topology,
  sizes: compiled.Sizes,
) -> Candidate:
  chip, state_bytes = topology.chip, step.state_bytes()
  if state_bytes > chip.memory_bytes:
    return Candidate(mesh, state_bytes, 'the state alone does not fit a chip')
  try:
    result = step.compile()
  except compiled.OutOfMemoryError as error:
    return Candidate(mesh, state_bytes, f'XLA: {error}')
  program = hlo.Program(result.text)
  collectives = cost.collectives(program)
  traffic = cost.memory_traffic(program)
  roofline = cost.roofline(
    chip, sizes.step_flops / topology.num_chips, traffic, collectives
  )
  peak = chip.flops_per_second * topology.num_chips
  share = result.memory_bytes / chip.memory_bytes
  return Candidate(
    mesh,
    state_bytes,
    f'above {MEMORY_FRACTION:.0%} of memory'
    if share > MEMORY_FRACTION
    else None,
    result.memory_bytes,
    result.seconds,
    result.text.count(f'custom_call_target="{_KERNELS[topology.platform]}"'),
    program.unbounded(),
    traffic,
    collectives,
    roofline,
    sizes.model_flops / roofline.step / peak,
  )


def show(mesh: MeshConfig) -> str:
  """Data, fsdp and tensor, as `--mesh` takes them."""
  return ','.join(map(str, dataclasses.astuple(mesh)))


def table(plan: Plan) -> Iterator[str]:
  """Yields the lines to print."""
  topology, chip, sizes = plan.topology, plan.topology.chip, plan.sizes
  yield (
    f'{topology.name}: {topology.num_chips} x {chip.device_kind}, each'
    f' {chip.memory_bytes / 1e9:.0f} GB at'
    f' {chip.memory_bytes_per_second / 1e9:.0f} GB/s,'
    f' {chip.flops_per_second / 1e12:.0f} TFLOP/s,'
    f' {chip.link_bytes_per_second / 1e9:.0f} GB/s to other chips'
  )
  yield (
    f'{sizes.parameters:,} parameters; a step of {plan.batch_size} rows of'
    f' {plan.sequence_length} ids is {sizes.model_flops / 1e12:.4g} TFLOP of'
    f' the model, {sizes.step_flops / 1e12:.4g} TFLOP as computed'
  )
  yield (
    'mesh: data, fsdp, tensor; memory of a chip; ms of a step for products,'
    ' memory, links; at least (all at once) and in turn; utilisation at most'
  )
  for candidate in plan.candidates:
    yield _row(candidate, chip.memory_bytes)
    for kind, one in (candidate.collectives or {}).items():
      yield (
        f'    {kind}: {one.count:,} of {one.operand_bytes / 1e6:,.1f} MB,'
        f' {one.sent_bytes / 1e6:,.1f} MB sent'
      )
  if plan.recommended is None:
    yield 'recommended: none fits; take more chips, or a smaller batch or model'
  else:
    axes = dataclasses.asdict(plan.recommended).items()
    flags = ' '.join(f'--config.mesh.{name}={size}' for name, size in axes)
    yield f'recommended: {flags}'


def _row(candidate: Candidate, capacity: float) -> str:
  mesh = f'{show(candidate.mesh):>12}'
  if candidate.memory_bytes is None:
    state = f'{candidate.state_bytes / 1e9:.2f} GB of state'
    return f'{mesh}  does not fit: {candidate.refused} ({state})'
  times = candidate.roofline
  refused = f'  does not fit: {candidate.refused}' if candidate.refused else ''
  loops = candidate.unbounded_loops
  unbounded = (
    f'; {loops} loops of unknown length, counted once' if loops else ''
  )
  return (
    f'{mesh}  {candidate.memory_bytes / 1e9:.2f} GB'
    f' ({candidate.memory_bytes / capacity:.1%})'
    f'  {times.compute * 1e3:.3g} + {times.memory * 1e3:.3g}'
    f' + {times.links * 1e3:.3g} ms'
    f'  {times.step * 1e3:.3g} to {times.step_in_turn * 1e3:.3g} ms'
    f'  {candidate.utilisation:.1%}'
    f'  ({candidate.kernels} kernels, compiled in'
    f' {candidate.compile_seconds:.0f} s{unbounded}){refused}'
  )
