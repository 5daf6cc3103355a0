"""Weights of the terms of an objective."""

import dataclasses
from typing import Any

from abstractinator.config import LossConfig


def loss_weights(**changes: Any) -> LossConfig:
  """Returns weights of 0 and no schedules, but for the changes."""
  zeros = {field.name: 0 for field in dataclasses.fields(LossConfig)}
  return LossConfig(**{**zeros, 'curriculum_stops': False, **changes})
