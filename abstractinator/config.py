"""Every setting of a run, as frozen dataclasses checked on construction.

There are no defaults here: `configs/default.py` spells each value once, other
config files edit it, and `train.py` hands the result to `RunConfig.from_dict`.
An error names the path of the setting, its value and what is allowed.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

Rule = Literal['entropy_delta']
Context = Literal['segment', 'window']
Implementation = Literal['auto', 'reference', 'xla']
Dtype = Literal['float32', 'bfloat16']


def _require(ok: bool, field: str, value: Any, allowed: str) -> None:
  if not ok:
    raise ValueError(f'{field}: got {value!r}, allowed: {allowed}')


def _require_positive(config: Any, *fields: str) -> None:
  for field in fields:
    value = getattr(config, field)
    _require(value > 0, field, value, 'a positive number')


def _require_fraction(config: Any, *fields: str) -> None:
  for field in fields:
    value = getattr(config, field)
    _require(0 <= value < 1, field, value, '0 <= value < 1')


def _convert(annotation: Any, value: Any, path: str) -> Any:
  """Returns `value` as `annotation` wants it, or raises naming `path`."""
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if origin in (types.UnionType, typing.Union):
    if value is None:
      return None
    (annotation,) = [a for a in args if a is not type(None)]
    return _convert(annotation, value, path)
  if origin is Literal:
    _require(value in args, path, value, ', '.join(map(str, args)))
    return value
  if origin is tuple:
    _require(
      isinstance(value, Sequence) and not isinstance(value, str),
      path,
      value,
      'a list',
    )
    return tuple(
      _convert(args[0], v, f'{path}[{i}]') for i, v in enumerate(value)
    )
  if dataclasses.is_dataclass(annotation):
    return annotation.from_dict(value, path)
  if annotation is float and type(value) is int:
    return float(value)
  _require(
    type(value) is annotation, path, value, f'a value of {annotation.__name__}'
  )
  if annotation is float:
    _require(math.isfinite(value), path, value, 'a finite number')
  return value


class _Section:
  """A part of the config that can be read from a mapping."""

  @classmethod
  def from_dict(cls, values: Mapping[str, Any], path: str = '') -> Self:
    """Builds the section from plain values.

    Args:
      values: Exactly the fields of the section; nested sections as mappings.
      path: Where the section stands in the whole config, for messages.

    Returns:
      The section, checked.

    Raises:
      ValueError: If a key is unknown or missing, or a value is not allowed.
    """
    prefix = f'{path}.' if path else ''
    _require(isinstance(values, Mapping), path, values, 'a group of settings')
    fields = {f.name: f.type for f in dataclasses.fields(cls)}
    for key in values:
      if key not in fields:
        near = difflib.get_close_matches(key, fields, n=2) or list(fields)
        raise ValueError(
          f'{prefix}{key}: unknown setting, allowed: {", ".join(near)}'
        )
    missing = [prefix + name for name in fields if name not in values]
    if missing:
      raise ValueError(f'missing settings: {", ".join(missing)}')
    converted = {
      name: _convert(annotation, values[name], prefix + name)
      for name, annotation in fields.items()
    }
    try:
      return cls(**converted)
    except ValueError as error:
      # Sections check themselves without knowing where they stand.
      raise ValueError(f'{prefix}{error}') from None

  def to_dict(self) -> dict[str, Any]:
    """Returns plain nested values, ready for JSON."""
    return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class DataConfig(_Section):
  """What to read. See `configs/default.py` for units."""

  train: str
  validation: str
  validation_fraction: float
  sequence_length: int
  batch_size: int
  read_threads: int
  prefetch_batches: int

  def __post_init__(self):
    _require_positive(self, 'sequence_length', 'batch_size', 'prefetch_batches')
    _require_fraction(self, 'validation_fraction')
    _require(self.read_threads >= 0, 'read_threads', self.read_threads, '>= 0')
    _require(
      bool(self.validation) or self.validation_fraction > 0,
      'validation_fraction',
      self.validation_fraction,
      'above 0 when data.validation is empty',
    )


@dataclasses.dataclass(frozen=True)
class StackConfig(_Section):
  """A causal transformer stack with a sliding window."""

  num_layers: int
  num_heads: int
  window: int
  ffn_dim: int

  def __post_init__(self):
    _require_positive(self, 'num_layers', 'num_heads', 'window', 'ffn_dim')


@dataclasses.dataclass(frozen=True)
class SegmentationConfig(_Section):
  """Where segments begin."""

  rule: Rule
  threshold_bits: float
  target_length: float | None
  calibration_bits: float
  min_length: int
  max_length: int
  capacity_length: float

  def __post_init__(self):
    _require_positive(self, 'min_length', 'max_length', 'calibration_bits')
    _require(
      self.min_length <= self.max_length,
      'min_length',
      self.min_length,
      f'at most max_length ({self.max_length})',
    )
    _require(
      1 <= self.capacity_length <= self.max_length,
      'capacity_length',
      self.capacity_length,
      f'1 to max_length ({self.max_length})',
    )
    if self.target_length is not None:
      _require(
        max(self.capacity_length, self.min_length)
        <= self.target_length
        <= self.max_length,
        'target_length',
        self.target_length,
        f'at least capacity_length ({self.capacity_length}) and min_length'
        f' ({self.min_length}), at most max_length ({self.max_length})',
      )

  def num_slots(self, sequence_length: int) -> int:
    """Segment slots of a row of `sequence_length` ids."""
    return math.ceil(sequence_length / self.capacity_length)


@dataclasses.dataclass(frozen=True)
class PoolingConfig(_Section):
  """Learned-query attention over a segment."""

  num_heads: int

  def __post_init__(self):
    _require_positive(self, 'num_heads')


@dataclasses.dataclass(frozen=True)
class QuantizerConfig(_Section):
  """Vector quantization with an EMA codebook."""

  codebook_size: int
  code_dim: int | None
  decay: float
  reset_interval_steps: int
  reset_after_steps: int

  def __post_init__(self):
    _require_positive(
      self, 'codebook_size', 'reset_interval_steps', 'reset_after_steps'
    )
    _require_fraction(self, 'decay')
    if self.code_dim is not None:
      _require_positive(self, 'code_dim')


@dataclasses.dataclass(frozen=True)
class ExpanderConfig(_Section):
  """The autoregressive decoder of a level."""

  num_layers: int
  num_heads: int
  ffn_dim: int
  context: Context
  window: int
  lookback: int

  def __post_init__(self):
    _require_positive(self, 'num_layers', 'num_heads', 'ffn_dim', 'window')
    _require(self.lookback >= 0, 'lookback', self.lookback, '>= 0')


@dataclasses.dataclass(frozen=True)
class LevelConfig(_Section):
  """One level: compressor, quantizer, expander."""

  d_model: int
  entropy_model: StackConfig
  segmentation: SegmentationConfig
  encoder: StackConfig
  pooling: PoolingConfig
  quantizer: QuantizerConfig
  expander: ExpanderConfig

  def __post_init__(self):
    _require_positive(self, 'd_model')
    for name in ('entropy_model', 'encoder', 'pooling', 'expander'):
      heads = getattr(self, name).num_heads
      _require(
        self.d_model % heads == 0,
        f'{name}.num_heads',
        heads,
        f'a divisor of d_model ({self.d_model})',
      )
      _require(
        name == 'pooling' or self.d_model // heads % 2 == 0,
        f'{name}.num_heads',
        heads,
        f'd_model / num_heads even, for rotary positions (d_model is'
        f' {self.d_model})',
      )

  def max_documents(self, sequence_length: int) -> int:
    """Documents a row may touch so that its segments find slots.

    Each document can cost one segment beyond what its length needs.
    """
    needed = -(-sequence_length // self.segmentation.max_length)
    return self.segmentation.num_slots(sequence_length) - needed


@dataclasses.dataclass(frozen=True)
class ModelConfig(_Section):
  """The pyramid."""

  levels: tuple[LevelConfig, ...]
  dtype: Dtype
  implementation: Implementation

  def __post_init__(self):
    _require(len(self.levels) == 1, 'levels', len(self.levels), '1 level')


@dataclasses.dataclass(frozen=True)
class LossConfig(_Section):
  """Weights of the terms of the objective, each in nats per id."""

  entropy_model: float
  expander: float
  end: float
  commitment: float

  def __post_init__(self):
    for name, weight in dataclasses.asdict(self).items():
      _require(weight >= 0, name, weight, '>= 0')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(_Section):
  """AdamW with warm-up and cosine decay."""

  learning_rate: float
  final_fraction: float
  warmup_steps: int
  weight_decay: float
  beta1: float
  beta2: float
  clip_norm: float

  def __post_init__(self):
    _require_positive(self, 'learning_rate', 'clip_norm')
    _require_fraction(self, 'beta1', 'beta2')
    _require(
      0 <= self.final_fraction <= 1,
      'final_fraction',
      self.final_fraction,
      '0 to 1',
    )
    _require(self.warmup_steps >= 0, 'warmup_steps', self.warmup_steps, '>= 0')
    _require(self.weight_decay >= 0, 'weight_decay', self.weight_decay, '>= 0')


@dataclasses.dataclass(frozen=True)
class MeshConfig(_Section):
  """Devices along each mesh axis; -1 on one axis takes what is left."""

  data: int
  fsdp: int
  tensor: int

  def __post_init__(self):
    sizes = dataclasses.asdict(self)
    for name, size in sizes.items():
      _require(size > 0 or size == -1, name, size, 'a positive number or -1')
    unknown = [name for name, size in sizes.items() if size == -1]
    _require(
      len(unknown) <= 1, unknown[-1] if unknown else '', -1, '-1 on one axis'
    )


@dataclasses.dataclass(frozen=True)
class RunConfig(_Section):
  """A whole run."""

  seed: int
  max_steps: int | None
  num_epochs: float
  log_interval: int
  eval_interval: int
  eval_batches: int
  checkpoint_interval: int
  max_to_keep: int
  data: DataConfig
  model: ModelConfig
  loss: LossConfig
  optimizer: OptimizerConfig
  mesh: MeshConfig

  def __post_init__(self):
    _require(self.seed >= 0, 'seed', self.seed, '>= 0')
    _require_positive(
      self,
      'num_epochs',
      'log_interval',
      'eval_interval',
      'eval_batches',
      'checkpoint_interval',
      'max_to_keep',
    )
    # So that a resumed run logs the same windows as one never stopped.
    _require(
      self.checkpoint_interval % self.log_interval == 0,
      'checkpoint_interval',
      self.checkpoint_interval,
      f'a multiple of log_interval ({self.log_interval})',
    )
    for i, level in enumerate(self.model.levels):
      documents = level.max_documents(self.data.sequence_length)
      _require(
        documents >= 1,
        f'model.levels[{i}].segmentation.capacity_length',
        level.segmentation.capacity_length,
        f'smaller, so that rows of {self.data.sequence_length} ids have a slot'
        ' to spare',
      )
    if self.max_steps is not None:
      _require_positive(self, 'max_steps')
