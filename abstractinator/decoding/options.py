"""Options of generation, as a caller gives them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Options:
  """Sampling settings, limits and stop strings.

  With a temperature of 0, every code, byte and end of a segment or document is
  the most likely one given those before it. Otherwise each is drawn from its
  own distribution, filtered as given; with a temperature of 1 and no filter,
  from the model's distribution.

  Attributes:
    max_new_bytes: New bytes after which a text ends, 1 to 2^24.
    temperature: Divisor of the logits of codes and bytes, 0 or at least 1e-6.
    top_k: Number of most likely digits or bytes that are kept, 0 for all.
    top_p: Total probability of those that are kept, 1 for all.
    min_p: Least probability that is kept, relative to the most likely one.
    level_temperature: Temperature of the ids of levels; None for `temperature`,
      which otherwise holds for top codes only.
    seed: Seed of the random numbers, 0 to 2^32 - 1. A sample depends on it, its
      prompt and its number, not on what is generated beside it.
    num_samples: Continuations of each prompt, 1 to 2^24.
    stop: Byte strings; a text ends before the first of them.
    entropy_model_only: Whether the entropy model of the first level generates
      bytes, without codes.

  Raises:
    ValueError: If an option is out of its range.
  """

  max_new_bytes: int = 256
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  level_temperature: float | None = None
  seed: int = 0
  num_samples: int = 1
  stop: tuple[bytes, ...] = ()
  entropy_model_only: bool = False

  def __post_init__(self):
    for name in ('max_new_bytes', 'num_samples'):
      value = getattr(self, name)
      _require(1 <= value <= 1 << 24, name, value, '1 to 2^24')
    for name in ('temperature', 'level_temperature'):
      value = getattr(self, name)
      ok = value is None or value == 0 or 1e-6 <= value < float('inf')
      _require(ok, name, value, '0, or >= 1e-6')
    _require(0 <= self.top_k < 1 << 31, 'top_k', self.top_k, '0 to 2^31 - 1')
    _require(0 < self.top_p <= 1, 'top_p', self.top_p, '0 < value <= 1')
    _require(0 <= self.min_p <= 1, 'min_p', self.min_p, '0 to 1')
    _require(0 <= self.seed < 1 << 32, 'seed', self.seed, '0 to 2^32 - 1')
    for text in self.stop:
      ok = isinstance(text, bytes) and len(text) > 0
      _require(ok, 'stop', text, 'bytes, at least 1')


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
  if not ok:
    raise ValueError(f'{name}: got {value!r}, allowed: {allowed}')
