"""What an implementation of an op can take; `docs/kernels.md` is made of it."""

import dataclasses

PLATFORMS = ('cpu', 'gpu', 'tpu')


@dataclasses.dataclass(frozen=True)
class Support:
  """Of one implementation of one op.

  Attributes:
    platforms: Those it runs on, of `PLATFORMS`.
    dtypes: Types of values that it takes.
    is_reproducible_on: Platforms on which it gives the same bits twice.
    cost: Time and memory, in the letters of `types`.
    note: What it does, and what it cannot take and why. Markdown.
  """

  platforms: tuple[str, ...]
  dtypes: tuple[str, ...]
  is_reproducible_on: tuple[str, ...]
  cost: str
  note: str


ANY_FLOAT = ('float32', 'bfloat16', 'float16')
NOT_ON_GPU = ('cpu', 'tpu')
