"""A run: from a config and a directory to a trained level."""

import json
import math
from collections.abc import Iterator

import jax

from abstractinator.config import RunConfig
from abstractinator.data import pipeline
from abstractinator.evaluation.held_out import HeldOut
from abstractinator.objective import metrics
from abstractinator.runs import checkpoint, load_parts, processes, sharding
from abstractinator.runs.state import TrainState, averaged_variables_of
from abstractinator.training import metric_writer, report
from abstractinator.training.curriculum import require_time
from abstractinator.training.flops import DeviceMetrics
from abstractinator.training.health import AlarmLog
from abstractinator.training.open_rows import open_rows
from abstractinator.training.optimizer import make_schedule
from abstractinator.training.profile import NO_PROFILE, Profile
from abstractinator.training.program import make_program
from abstractinator.training.progress import Progress
from abstractinator.training.step_metrics import Window
from abstractinator.types import Batch


class Run:
  """What a run is made of, and the loop over it."""

  def __init__(self, config: RunConfig, workdir: str):
    """Opens data and files and compiles the initial state.

    Args:
      config: The run.
      workdir: Its directory, created if need be. A run that lies there goes on
        from its latest checkpoint.

    Raises:
      ValueError: If sizes, data or checkpoints do not fit.
    """
    self.config = config
    self.workdir = workdir
    self._is_main = processes.is_main()
    self._mesh = sharding.make_mesh(config.mesh)
    self._shard = sharding.process_shard(
      sharding.batch_sharding(self._mesh),
      config.data.batch_size,
      config.microbatches,
    )
    self._open_data()
    program = self._program = make_program(
      config, self._mesh.devices.flat[0].platform, self.total_steps
    )
    self._schedule = make_schedule(config.optimizer, self.total_steps)
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
    per_epoch = pipeline.steps_per_epoch(self._train_rows, c.data.batch_size)
    self.total_steps = math.ceil(c.num_epochs * per_epoch)
    if c.max_steps is not None:
      self.total_steps = min(self.total_steps, c.max_steps)
    require_time(c, self.total_steps)
    self._data_identity = {
      'train': self._train_rows.identity(),
      'validation': self._validation_rows.identity(),
    }

  def require_same_data(self) -> None:
    """Raises ValueError, on all processes, if one has opened other data."""
    processes.require_equal('data', json.dumps(self._data_identity))

  def _order(self) -> dict[str, int]:
    """Which rows this process reads, and when."""
    return dict(
      seed=self.config.seed,
      batch_size=self.config.data.batch_size,
      shard_index=self._shard[0],
      shard_count=self._shard[1],
    )

  def _train_batches(self, next_row: int) -> pipeline.TrainIterator:
    iterator = pipeline.TrainIterator(
      self._train_rows,
      **self._order(),
      read_threads=self.config.data.read_threads,
      prefetch_batches=self.config.data.prefetch_batches,
    )
    iterator.set_state({'next_row': next_row})
    return iterator

  def _validation_batches(self, max_batches: int | None) -> Iterator[Batch]:
    return pipeline.validation_batches(
      self._validation_rows, **self._order(), max_batches=max_batches
    )

  def start(self, resume_from: str | None = None) -> TrainState:
    """The first state of this process: restored if there is one to restore.

    Args:
      resume_from: Directory of another run to start from, if this one has no
        checkpoint yet.

    Returns:
      The state.

    Raises:
      ValueError: If a checkpoint is damaged, or of other shapes or data.
    """
    written = metric_writer.last_step(self.workdir)
    if checkpoint.latest_step(self.workdir) is not None:
      source = self.workdir
    elif written is not None and written >= 2 * self.config.checkpoint_interval:
      raise ValueError(
        f'{self.workdir}: its metrics reach step {written} but no checkpoint is'
        ' there to go on from; move the directory away to start anew'
      )
    elif resume_from is not None:
      source = resume_from
    else:
      self._next_row, self._window = 0, None
      state = self._init(jax.random.key(self.config.seed))
      return load_parts.load(state, self._abstract, self.config)
    restored = checkpoint.restore(source, self._abstract)
    load_parts.check_sources(self.config, restored.config, source)
    is_done = self.total_steps <= restored.step
    if self.total_steps < restored.step or (is_done and source == resume_from):
      raise ValueError(
        f'max_steps, num_epochs: got {self.total_steps} steps, allowed: more'
        f' than the {restored.step} of the checkpoint in {source}'
      )
    position = dict(restored.data_position)
    self._next_row = position.pop('next_row')
    self._window = position.pop('window', None)
    for name, identity in self._data_identity.items():
      if position[name] != identity:
        raise ValueError(
          f'data.{name}: got {identity}, allowed: the data of the checkpoint,'
          f' {position[name]}'
        )
    return restored.state

  def train(
    self, state: TrainState, profile: Profile = NO_PROFILE
  ) -> dict[str, float]:
    """Trains to the end.

    Args:
      state: From `start`; it is used up.
      profile: Steps to trace.

    Returns:
      The last held-out metrics, by tag; none if there was nothing to do.

    Raises:
      FloatingPointError: If a loss is not finite.
      processes.Preempted: If the run was told to stop; it is saved.
    """
    c = self.config
    step = int(state.step)
    iterator = self._train_batches(self._next_row)
    writer = metric_writer.MetricWriter(
      self.workdir, step, enabled=self._is_main
    )
    checkpointer = checkpoint.Checkpointer(
      self.workdir, c.max_to_keep, best_metric='eval/loss_total'
    )
    progress = Progress(self.total_steps, step, enabled=self._is_main)
    if self._is_main:
      self._describe(progress, state, step)
    alarms = AlarmLog(c, writer, progress.message)
    window = Window(self._window)
    devices = DeviceMetrics(c, list(self._mesh.devices.flat))
    preemption = processes.Preemption()
    tags: dict[str, float] = {}
    with jax.set_mesh(self._mesh), writer, checkpointer, preemption, profile:
      pending = None
      while step < self.total_steps:
        with window.input():
          batch = sharding.shard_batch(next(iterator), self._mesh)
        profile.before(step, writer.tensorboard_path)
        with (
          jax.profiler.StepTraceAnnotation('train', step_num=step),
          jax.transfer_guard('disallow'),
        ):
          state, new = self._step(state, batch)
        # Fetching the metrics of the step before keeps the device busy.
        if pending is not None:
          self._take(window, step, pending, progress, alarms)
        step, pending = step + 1, new
        profile.after(step, new)
        is_last = step == self.total_steps
        is_told = preemption.reached(step) and not is_last
        is_log = step % c.log_interval == 0 or is_last
        is_eval = step % c.eval_interval == 0 or is_last
        is_save = step % c.checkpoint_interval == 0 or is_last or is_told
        if not (is_log or is_eval or is_save):
          continue
        self._take(window, step, pending, progress, alarms)
        pending = None
        window.pause()
        summary = window.summary()
        if is_log:
          found = alarms.train(step, summary)
          writer.write_scalars(step, found | self._tags(window, devices, step))
          for name, counts in metrics.histograms(window.total).items():
            writer.write_histogram(step, f'train/{name}', counts)
          window.restart()
        if is_eval:
          with window.apart('eval'):
            tags = self._evaluate(state, step, is_last, writer, progress)
          held_out = {k.removeprefix('eval/'): v for k, v in tags.items()}
          found = alarms.held_out(step, held_out, summary)
          writer.write_scalars(step, found)
        if is_save:
          with window.apart('checkpoint'):
            checkpointer.save(
              step,
              state,
              iterator.get_state()
              | self._data_identity
              | {'window': window.to_json()},
              c.to_dict(),
              metrics=tags if is_eval else None,
            )
        if is_told:
          raise processes.Preempted(f'stopped at step {step}, saved')
        window.resume()
    progress.close()
    return tags

  def _take(self, window, step, fetched, progress, alarms) -> None:
    """Adds the metrics of a step to the window, stopping on a broken loss."""
    values = jax.device_get(fetched)
    alarms.require_finite(step, values, self.workdir)
    window.add(values)
    progress.update(step, window.shown())

  def _tags(self, window, devices, step: int) -> dict[str, float]:
    tags = {f'train/{k}': v for k, v in window.summary().items()}
    tags['train/learning_rate'] = float(self._schedule(step - 1))
    tags |= {f'perf/{k}': v for k, v in window.times().items()}
    return tags | devices.tags(window.step_seconds())

  def _evaluate(self, state, step, is_last, writer, progress) -> dict:
    """Held-out metrics, of more rows at the end of the run."""
    progress.message(f'step {step}: evaluating on held-out documents')
    variables = averaged_variables_of(state)
    config = self.config
    found = self._held_out.evaluate(
      variables, config.final_eval_batches if is_last else config.eval_batches
    )
    tags = {f'eval/{name}': value for name, value in found.summary.items()}
    writer.write_scalars(step, tags)
    for name, histogram in found.histograms.items():
      writer.write_histogram(step, f'eval/{name}', *histogram)
    if found.picture is not None:
      writer.write_text(step, 'eval/examples', found.examples)
      writer.write_image(step, 'eval/segments', found.picture)
    progress.message(f'step {step}: {report.headline(found.summary)}')
    return tags

  def _describe(self, progress, state, step) -> None:
    num_params = sum(x.size for x in jax.tree.leaves(state.params))
    rows, device = self._train_rows, self._mesh.devices.flat[0]
    progress.message(
      f'{self.workdir}: {num_params:,} parameters on'
      f' {self._mesh.devices.size} {device.device_kind} device(s)'
      f' ({self._program.model.implementation}, {self.config.model.dtype}),'
      f' {rows.num_documents:,} documents of {rows.num_bytes / 1e6:.1f} MB to'
      f' train on, {self._validation_rows.num_documents:,} held out, steps'
      f' {step} to {self.total_steps}'
    )
