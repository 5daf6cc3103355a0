"""Comparison of meshes for a run, by the programs compiled for them."""

import dataclasses
import math
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from abstractinator.config import MeshConfig, RunConfig
from abstractinator.planning import cost
from abstractinator.planning.hlo import HloProgram
from abstractinator.planning.topology import Topology
from abstractinator.runs import sharding
from abstractinator.training import flops
from abstractinator.training.program import (
  batch_shapes,
  make_program,
  state_shapes,
  xla_program,
)

# Largest share of memory to use: fragments and the runtime need the rest.
MEMORY_FRACTION = 0.9
# Target of the custom call by which a program runs a Pallas kernel.
_KERNELS = {'tpu': 'tpu_custom_call', 'gpu': '__gpu$xla.gpu.triton'}


@dataclasses.dataclass(frozen=True)
class RunSizes:
  """Sizes of a run that do not depend on its chips.

  Attributes:
    parameters: Number of parameters.
    model_flops: Floating point operations of the model's matrix products in a
      step, see `flops.training_flops`.
    step_flops: Floating point operations of all matrix products in a step,
      those that rematerialization repeats included.
  """

  parameters: int
  model_flops: int
  step_flops: int


def run_sizes(config: RunConfig) -> RunSizes:
  """Counts without compiling, on a step whose ops run without kernels."""
  program, state = xla_program(config), state_shapes(config)
  return RunSizes(
    sum(x.size for x in jax.tree.leaves(state.params)),
    flops.model_flops(config),
    flops.matmul_flops(program.step, state, batch_shapes(config)),
  )


class MeshStep:
  """Training step of a run laid out over a mesh, ready to be compiled.

  Attributes:
    state_bytes: Bytes of the training state on one chip.
  """

  def __init__(
    self,
    config: RunConfig,
    mesh: MeshConfig,
    devices: Sequence[jax.Device],
    platform: str,
  ):
    """Lays the state out over all devices of a mesh in place of the run's own.

    Raises:
      ValueError: If the mesh or the batch does not fit the devices.
    """
    self._mesh = sharding.make_mesh(mesh, devices)
    sharding.num_batch_parts(
      self._mesh, config.data.batch_size, config.microbatches
    )
    # The number of steps only shapes the schedule; any number will do.
    steps = config.optimizer.warmup_steps + 10**6
    program = make_program(config, platform, steps)
    abstract = jax.eval_shape(program.init, jax.random.key(0))
    shardings = sharding.state_shardings(abstract, self._mesh)
    place = sharding.batch_sharding(self._mesh)
    self._state = sharding.with_shardings(abstract, shardings)
    self._batch = batch_shapes(config, place)
    self._step = jax.jit(
      program.step,
      in_shardings=(shardings, place),
      out_shardings=(shardings, sharding.replicated(self._mesh)),
      donate_argnums=0,
    )
    self.state_bytes = sum(
      math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x in jax.tree.leaves(self._state)
    )

  def compile(self) -> jax.stages.Compiled:
    """Compiles the step as a run would."""
    with jax.set_mesh(self._mesh):
      return self._step.lower(self._state, self._batch).compile()


def _memory_bytes(program: jax.stages.Compiled) -> int:
  """Returns the largest memory that a chip needs during a step, in bytes."""
  memory: Any = program.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A mesh and what a training step needs on it; all numbers are per chip.

  Fields from `memory_bytes` on are None if the step was not compiled, or did
  not fit the compiler.

  Attributes:
    mesh: Sizes of the axes of the mesh.
    state_bytes: Bytes of the training state.
    refused: Reason why the step does not fit, None if it does.
    memory_bytes: Largest memory that a step needs.
    kernels: Number of Pallas kernels in the program.
    unbounded_loops: Number of loops of unknown length, which count once.
    collectives: Collectives by kind.
    roofline: Seconds of a step, by what limits it.
    utilisation: Upper bound on the share of the peak that the matrix products
      of the model reach.
  """

  mesh: MeshConfig
  state_bytes: int
  refused: str | None = None
  memory_bytes: int | None = None
  kernels: int | None = None
  unbounded_loops: int | None = None
  collectives: dict[str, cost.Collective] | None = None
  roofline: cost.Roofline | None = None
  utilisation: float | None = None


@dataclasses.dataclass(frozen=True)
class RunPlan:
  """Needs of a run on a topology, for each of several meshes.

  Attributes:
    topology: Chips that the meshes divide.
    batch_size: Number of rows in a step.
    sequence_length: Number of ids in a row.
    sizes: Sizes that are equal on all chips.
    candidates: Meshes that were compared.
    recommended: Mesh with the least time a step of those that fit; None if none
      does.
  """

  topology: Topology
  batch_size: int
  sequence_length: int
  sizes: RunSizes
  candidates: tuple[Candidate, ...]
  recommended: MeshConfig | None


def meshes(config: RunConfig, num_chips: int) -> list[MeshConfig]:
  """Returns meshes worth comparing: the run's own first, then the usual ones.

  Args:
    config: The run. Its own mesh is left out if it does not fit.
    num_chips: Number of chips of the topology.

  Returns:
    Meshes that differ, without -1; at least one.

  Raises:
    ValueError: If the batch divides none of them.
  """
  # The least power of two whose square is not below the number of chips.
  half = 2 ** -(-(num_chips - 1).bit_length() // 2)
  sizes = dataclasses.astuple(config.mesh)
  rest = num_chips // math.prod(size for size in sizes if size != -1)
  found = [
    tuple(rest if size == -1 else size for size in sizes),
    (num_chips, 1, 1),
    (1, num_chips, 1),
    (num_chips // half, half, 1),
    (1, num_chips // 4, 4),
  ]
  rows, parts = config.data.batch_size, config.microbatches
  fitting = [
    MeshConfig(*sizes)
    for sizes in dict.fromkeys(found)
    if min(sizes) > 0
    and math.prod(sizes) == num_chips
    and rows % (sizes[0] * sizes[1] * parts) == 0
  ]
  if not fitting:
    raise ValueError(
      f'data.batch_size: got {rows}, allowed: a multiple of the {num_chips}'
      f' chips times microbatches ({parts}), or pass --mesh'
    )
  return fitting


def compare(
  config: RunConfig,
  topology: Topology,
  devices: Sequence[jax.Device],
  candidates: Sequence[MeshConfig],
) -> RunPlan:
  """Returns the needs of a run, by compiling its training step for each mesh.

  A line on standard error announces each compilation, which takes minutes.

  Args:
    config: The run.
    topology: Chips to compile for.
    devices: Devices of the topology, from `topology.devices`.
    candidates: Meshes to compare.

  Raises:
    ValueError: If a mesh does not fit the topology or the batch.
  """
  sizes = run_sizes(config)
  found = []
  for mesh in candidates:
    step = MeshStep(config, mesh, devices, topology.platform)
    print(f'compiling for mesh {show(mesh)}', file=sys.stderr, flush=True)
    found.append(_candidate(step, mesh, topology, sizes))
  best = min(
    (x for x in found if x.refused is None),
    key=lambda x: x.roofline.step_in_turn if x.roofline else math.inf,
    default=None,
  )
  return RunPlan(
    topology,
    config.data.batch_size,
    config.data.sequence_length,
    sizes,
    tuple(found),
    best.mesh if best else None,
  )


def _candidate(
  step: MeshStep, mesh: MeshConfig, topology: Topology, sizes: RunSizes
) -> Candidate:
  chip = topology.chip
  if step.state_bytes > chip.memory_bytes:
    reason = 'the state alone does not fit a chip'
    return Candidate(mesh, step.state_bytes, reason)
  try:
    program = step.compile()
  except jax.errors.JaxRuntimeError as error:
    message = str(error)
    if 'RESOURCE_EXHAUSTED' not in message:
      raise
    used = re.search(r'Used [\d.]+\w? of [\d.]+\w? \w+', message)
    reason = used[0] if used else message.splitlines()[0]
    return Candidate(mesh, step.state_bytes, f'XLA: {reason}')
  text = program.as_text() or ''
  hlo = HloProgram(text)
  collectives = cost.collectives(hlo)
  roofline = cost.roofline(
    chip,
    sizes.step_flops / topology.num_chips,
    cost.memory_traffic(hlo),
    collectives,
  )
  peak = chip.flops_per_second * topology.num_chips
  memory_bytes = _memory_bytes(program)
  fits = memory_bytes / chip.memory_bytes <= MEMORY_FRACTION
  return Candidate(
    mesh,
    step.state_bytes,
    None if fits else f'above {MEMORY_FRACTION:.0%} of memory',
    memory_bytes,
    text.count(f'custom_call_target="{_KERNELS[topology.platform]}"'),
    hlo.unbounded_loops,
    collectives,
    roofline,
    sizes.model_flops / roofline.step / peak,
  )


def show(mesh: MeshConfig) -> str:
  """Returns the sizes of data, fsdp and tensor, as `--mesh` takes them."""
  return ','.join(map(str, dataclasses.astuple(mesh)))


def table(plan: RunPlan) -> Iterator[str]:
  """Yields the lines of a plan to print."""
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
  times = candidate.roofline
  if times is None or candidate.memory_bytes is None:
    state = f'{candidate.state_bytes / 1e9:.2f} GB of state'
    return f'{mesh}  does not fit: {candidate.refused} ({state})'
  refused = f'  does not fit: {candidate.refused}' if candidate.refused else ''
  count = candidate.unbounded_loops
  loops = f'; {count} loops of unknown length, counted once' if count else ''
  return (
    f'{mesh}  {candidate.memory_bytes / 1e9:.2f} GB'
    f' ({candidate.memory_bytes / capacity:.1%})'
    f'  {times.compute * 1e3:.3g} + {times.memory * 1e3:.3g}'
    f' + {times.links * 1e3:.3g} ms'
    f'  {times.step * 1e3:.3g} to {times.step_in_turn * 1e3:.3g} ms'
    f'  {candidate.utilisation:.1%}'
    f'  ({candidate.kernels} kernels{loops}){refused}'
  )
