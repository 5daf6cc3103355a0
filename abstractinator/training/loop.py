"""A training run, from a config and a directory to a trained model."""

import contextlib
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import jax

from abstractinator.config import RunConfig
from abstractinator.data import pipeline
from abstractinator.evaluation.held_out import Evaluation, HeldOut
from abstractinator.objective.learning import fitting, require_same_curriculum
from abstractinator.objective.metrics import Metrics, Summary
from abstractinator.runs import (
  allocator,
  checkpoint,
  load_parts,
  metric_lines,
  processes,
  sharding,
)
from abstractinator.runs import workdir as workdirs
from abstractinator.runs.checkpointer import Checkpointer, require_sound_metrics
from abstractinator.runs.state import TrainState, averaged_variables_of
from abstractinator.training import dictionary
from abstractinator.training.open_rows import open_rows
from abstractinator.training.optimizer import rise_of_longer_run, warmup_of
from abstractinator.training.profile import NO_PROFILE, Profile
from abstractinator.training.program import make_program
from abstractinator.training.report import (
  Reporter,
  after_divergence,
  after_fault,
)
from abstractinator.types import Batch


class Run:
  """A run: its data, model, devices and directory, and the loop over steps."""

  def __init__(self, config: RunConfig, workdir: str):
    """Opens data and files and compiles the initial state.

    Args:
      config: Config of the run.
      workdir: Directory of the run, created if need be. If it holds
        checkpoints, the run resumes from the latest one.

    Raises:
      ValueError: If sizes, data or checkpoints do not fit.
    """
    self.config = config
    self.workdir = workdir
    processes.require_device()
    self._mesh = sharding.make_mesh(config.mesh)
    shard_index, shard_count = sharding.process_shard(
      sharding.batch_sharding(self._mesh),
      config.data.batch_size,
      config.microbatches,
    )
    self._order = pipeline.BatchOrder(
      config.seed, config.data.batch_size, shard_index, shard_count
    )
    # Position in the data, and metrics since the last log line.
    self._next_row = 0
    self._begun: dict[str, Any] | None = None
    # What was due at the step of the checkpoint, but left to this process.
    self._postponed: set[str] = set()
    self._preemption = processes.Preemption()
    # A line about a learning rate that rises again, on a longer run.
    self._rise: str | None = None
    # A line about the dictionary that was counted, if any.
    self._counted: str | None = None
    self._open_data()
    # What trains: the config of the run, whose curriculum may be too long.
    self._fitting = fitting(config, self.total_steps)
    program = self._program = make_program(
      self._fitting, self._mesh.devices.flat[0].platform, self.total_steps
    )
    key = jax.random.key(config.seed)
    abstract = jax.eval_shape(program.init, key)
    shardings = sharding.state_shardings(abstract, self._mesh)
    self._init = jax.jit(program.init, out_shardings=shardings)
    self._abstract = sharding.with_shardings(abstract, shardings)
    self._step = jax.jit(
      program.step,
      in_shardings=(shardings, sharding.batch_sharding(self._mesh)),
      out_shardings=(shardings, sharding.replicated(self._mesh)),
      donate_argnums=0,
    )
    self._held_out = HeldOut(
      program.model,
      config.loss,
      program.objective,
      self._mesh,
      averaged_variables_of(shardings),
      self._validation_batches,
    )

  def _open_data(self) -> None:
    c = self.config
    self._train_rows, self._validation_rows = open_rows(c)
    self.total_steps = self._num_steps(c)
    self._data_identity = {
      'train': self._train_rows.identity(),
      'validation': self._validation_rows.identity(),
    }

  def _num_steps(self, config: RunConfig) -> int:
    """Returns the optimizer steps of a run on the data that is open."""
    per_epoch = math.ceil(len(self._train_rows) / config.data.batch_size)
    steps = math.ceil(config.num_epochs * per_epoch)
    return steps if config.max_steps is None else min(steps, config.max_steps)

  def require_same_data(self) -> None:
    """Checks that all processes have opened the same data.

    Raises:
      ValueError: On all processes, if one has opened other data.
    """
    processes.require_equal('data', json.dumps(self._data_identity))

  def _train_batches(self, next_row: int) -> pipeline.TrainIterator:
    iterator = pipeline.TrainIterator(
      self._train_rows,
      self._order,
      read_threads=self.config.data.read_threads,
      prefetch_batches=self.config.data.prefetch_batches,
    )
    iterator.set_state({'next_row': next_row})
    return iterator

  def _validation_batches(self, max_batches: int | None) -> Iterator[Batch]:
    batches = pipeline.validation_batches(
      self._validation_rows, self._order, max_batches=max_batches
    )
    with _reading():
      yield from batches

  def start(
    self, resume_from: str | None = None, step: int | None = None
  ) -> TrainState:
    """Returns the first state of this process, restored if there is a source.

    Args:
      resume_from: Directory of another run to start from, if this one has no
        checkpoint yet.
      step: Step of the checkpoint of `resume_from`; the latest one by default.

    Returns:
      The state.

    Raises:
      ValueError: If a checkpoint is damaged, or of other shapes or data.
    """
    require_sound_metrics(self.workdir)
    written = metric_lines.last_step(self.workdir)
    if checkpoint.latest_step(self.workdir) is not None:
      source, step = self.workdir, None
    elif written is not None and written > self._latest_without_checkpoint():
      raise ValueError(
        f'{self.workdir}: its metrics reach step {written} but it has no'
        ' checkpoint to resume from; move the directory away to start anew'
      )
    elif resume_from is not None:
      source = resume_from
    else:
      state = self._init(jax.random.key(self.config.seed))
      state = load_parts.load(state, self._abstract, self.config)
      return self._with_dictionary(state)
    restored = checkpoint.restore(source, self._abstract, step)
    workdirs.check_checkpoint(source, restored.step, restored.config)
    load_parts.check_sources(self.config, restored.config, source)
    is_done = self.total_steps <= restored.step
    if self.total_steps < restored.step or (is_done and source == resume_from):
      raise ValueError(
        f'max_steps, num_epochs: got {self.total_steps} steps, allowed: more'
        f' than the {restored.step} of the checkpoint in {source}'
      )
    self._go_on_at(restored.data_position, source)
    if is_done and metric_lines.has(source, restored.step, 'eval/loss_total'):
      self._postponed.clear()
    old = RunConfig.from_stored(restored.config, source)
    if source == self.workdir:
      require_same_curriculum(
        old, self._num_steps(old), self.config, self.total_steps
      )
    self._rise = rise_of_longer_run(
      old.optimizer,
      self.config.optimizer,
      self._num_steps(old),
      self.total_steps,
      restored.step,
    )
    return restored.state

  def _with_dictionary(self, state: TrainState) -> TrainState:
    """Fills the dictionary of a new run, if it has one."""
    if not dictionary.is_wanted(self.config):
      return state
    batches = self._train_batches(0)
    size = self.config.data.batch_size * self.config.data.sequence_length
    count = min(
      -(-len(self._train_rows) // self.config.data.batch_size),
      max(dictionary.SAMPLE_IDS // size, 1),
    )
    state, self._counted = dictionary.fill(
      state,
      self._program.model,
      self._mesh,
      list(itertools.islice(batches, count)),
    )
    return state

  def _latest_without_checkpoint(self) -> int:
    """Returns the last step that a run may log before it has a checkpoint.

    Training goes on while the first checkpoint is written, until the second one
    is due.
    """
    stored = workdirs.stored_config(self.workdir) or self.config
    return 2 * stored.checkpoint_interval

  def _go_on_at(self, position: dict[str, Any], source: str) -> None:
    """Takes over where the data pipeline of a checkpoint stands.

    Args:
      position: The item `data` of the checkpoint.
      source: Directory of its run, for messages.
    """
    try:
      self._next_row = position['next_row']
      self._begun = position['metrics']
      self._postponed = set(position.get('postponed', ()))
      there = {name: position[name] for name in self._data_identity}
    except KeyError as error:
      raise ValueError(
        f'{source}: item data of its checkpoint has no {error}, allowed: one of'
        ' the same version'
      ) from error
    for name, identity in self._data_identity.items():
      if there[name] != identity:
        raise ValueError(
          f'data.{name}: got {identity}, allowed: the data of the checkpoint,'
          f' {there[name]}'
        )

  def train(
    self, state: TrainState, profile: Profile = NO_PROFILE
  ) -> Summary | None:
    """Trains to the end.

    Args:
      state: State from `start`; it is used up.
      profile: Steps to trace.

    Returns:
      The last held-out metrics; None if there was nothing to do.

    Raises:
      FloatingPointError: If a loss is not finite.
      OSError: If data can no longer be read, or files not be written.
      processes.Preempted: If the run was told to stop; it is saved.
    """
    try:
      return self._train(state, profile)
    except FloatingPointError as error:
      hint = after_divergence(self.workdir, self.config)
      raise FloatingPointError(f'{error}; {hint}') from error
    except OSError as error:
      hint = after_fault(self.workdir)
      raise OSError(f'{error}; {hint}') from error

  def _train(self, state: TrainState, profile: Profile) -> Summary | None:
    c, step = self.config, int(state.step)
    batches = self._train_batches(self._next_row)
    report = self._reporter(state)
    held_out: Summary | None = None
    with (
      jax.set_mesh(self._mesh),
      report.writer,
      Checkpointer(self.workdir, c.max_to_keep, 'eval/loss_total') as saver,
      self._preemption,
      profile,
    ):
      pending: Metrics | None = None
      if self._postponed:
        report.pause()
        held_out = self._interrupt(
          self._postponed, step, state, batches, report, saver
        )
        report.resume()
      while step < self.total_steps:
        with report.steps.input(), _reading():
          batch = sharding.shard_batch(next(batches), self._mesh)
        profile.before(step, report.writer.tensorboard_path)
        with (
          jax.profiler.StepTraceAnnotation('train', step_num=step),
          jax.transfer_guard('disallow'),
        ):
          state, new = self._step(state, batch)
        # Fetching the metrics of the step before keeps the device busy.
        if pending is not None:
          report.add(step, pending)
        step, pending = step + 1, new
        profile.after(step, new)
        due = self._due(step, self._preemption.reached(step))
        if not due:
          continue
        report.add(step, pending)
        pending = None
        report.pause()
        found = self._interrupt(due, step, state, batches, report, saver)
        held_out = found or held_out
        report.resume()
    report.progress.close()
    return held_out

  def _due(self, step: int, is_told: bool) -> set[str]:
    """Returns what is due after a step: 'log', 'eval', 'save'."""
    c = self.config
    intervals = {
      'log': c.log_interval,
      'eval': c.eval_interval,
      'save': c.checkpoint_interval,
    }
    is_last = step == self.total_steps
    due = {name for name, n in intervals.items() if step % n == 0 or is_last}
    return due | {'save'} if is_told else due

  def _interrupt(
    self,
    due: set[str],
    step: int,
    state: TrainState,
    batches: pipeline.TrainIterator,
    report: Reporter,
    saver: Checkpointer,
  ) -> Summary | None:
    """Logs, evaluates and saves if due; returns held-out metrics, if any.

    Raises:
      processes.Preempted: If the run was told to stop; it is saved. A stop
        before the end of an evaluation postpones all else that is due: the
        resumed process begins with it.
    """
    summary = report.steps.summary()
    found, tags = None, None
    postponed: set[str] = set()
    if 'eval' in due:
      try:
        with report.steps.apart('eval'):
          found = self._evaluate(state, step, report)
      except processes.Preempted:
        postponed = due - {'save'}
        # The checkpoint that postponed it may be the one resumed from.
        is_saved = checkpoint.latest_step(self.workdir) == step
        due = set() if is_saved else {'save'}
    if due & {'log', 'save'}:
      with processes.together():
        if 'log' in due:
          report.log(step, summary)
        saver.check()
    if found is not None:
      with processes.together():
        tags = report.evaluated(step, found, summary)
    if 'save' in due:
      with report.steps.apart('checkpoint'):
        position = {
          **batches.get_state(),
          **self._data_identity,
          'metrics': report.steps.to_json(),
          'postponed': sorted(postponed),
        }
        saver.save(step, state, position, self.config.stored(), metrics=tags)
    is_stop = self._preemption.is_told and 'save' in due
    if postponed or (is_stop and step < self.total_steps):
      raise processes.Preempted(f'stopped at step {step}, saved')
    return None if found is None else found.summary

  def _evaluate(
    self, state: TrainState, step: int, report: Reporter
  ) -> Evaluation:
    """Computes held-out metrics, of more rows at the end of the run.

    Raises:
      processes.Preempted: If the run is told to stop before the last batch.
    """
    limit = self._evaluation_limit(step)
    total = self._num_batches(limit)

    def after_batch(done: int) -> None:
      if self._preemption.is_told and done < total:
        raise processes.Preempted
      report.progress.evaluated(step, done, total)

    after_batch(0)
    return self._held_out.evaluate(
      averaged_variables_of(state), limit, after_batch
    )

  def _evaluation_limit(self, step: int) -> int | None:
    c, is_last = self.config, step == self.total_steps
    return c.final_eval_batches if is_last else c.eval_batches

  def _num_batches(self, limit: int | None) -> int:
    """Returns the batches of an evaluation of at most `limit` batches."""
    there = math.ceil(len(self._validation_rows) / self.config.data.batch_size)
    return there if limit is None else min(limit, there)

  def _batches_after(self, step: int) -> int:
    """Returns the batches of all evaluations after a step."""
    if step >= self.total_steps:
      return 0
    interval = self.config.eval_interval
    often = (self.total_steps - 1) // interval - step // interval
    last = self._num_batches(self._evaluation_limit(self.total_steps))
    return often * self._num_batches(self.config.eval_batches) + last

  def _reporter(self, state: TrainState) -> Reporter:
    """Opens the reports of this process and describes the run in a line."""
    devices = list(self._mesh.devices.flat)
    report = Reporter(
      self._fitting,
      self.workdir,
      # Lines of a step at which something is postponed are written anew.
      int(state.step) - bool(self._postponed),
      self.total_steps,
      devices,
      begun=self._begun,
      batches_after=self._batches_after,
      enabled=processes.is_main(),
    )
    num_params = sum(x.size for x in jax.tree.leaves(state.params))
    rows, held_out = self._train_rows, self._validation_rows
    report.progress.message(
      f'{self.workdir}: {num_params:,} parameters in {self.config.model.dtype}'
      f' on {len(devices)} device(s) of kind {devices[0].device_kind}\n'
      f'ops: {self._program.model.implementation}\n'
      f'{len(rows.documents):,} documents of {rows.num_ids:,} ids to train on,'
      f' {len(held_out.documents):,} held out\n'
      f'steps {int(state.step)} to {self.total_steps}'
    )
    memory = allocator.note()
    if memory is not None:
      report.progress.message(memory)
    for line in (*self._shortened(), self._rise, self._counted):
      if line is not None:
        report.progress.message(line)
    if not self._postponed:
      report.progress.message('compiling the training step')
    return report

  def _shortened(self) -> Iterator[str]:
    """Yields a line for each setting that does not fit into the run."""
    c, steps = self.config, self.total_steps
    limit = 'max_steps' if steps == c.max_steps else 'num_epochs'
    for name, wanted, got in (
      (
        'optimizer.warmup_steps',
        c.optimizer.warmup_steps,
        warmup_of(c.optimizer, steps),
      ),
      (
        'loss.curriculum_steps',
        c.loss.curriculum_steps,
        self._fitting.loss.curriculum_steps,
      ),
    ):
      if got < wanted:
        yield (
          f'{name}: shortened from {wanted} to {got} of {steps} steps; raise'
          f' {limit}'
        )


@contextlib.contextmanager
def _reading() -> Iterator[None]:
  """Turns what can be wrong with data once a run has begun into OSError.

  Any other ValueError of the training loop is a mistake in the program.
  """
  try:
    yield
  except ValueError as error:
    raise OSError(str(error)) from error
