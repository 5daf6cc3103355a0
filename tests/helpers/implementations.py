"""Implementations of the ops that tests of modules use."""

from abstractinator.config import ImplementationConfig
from abstractinator.ops.implementation import resolve_implementations

XLA_CONFIG = ImplementationConfig.everywhere('xla')
REFERENCE_CONFIG = ImplementationConfig.everywhere('reference')
XLA = resolve_implementations(XLA_CONFIG, 'cpu')
BY_NAME = {
  'xla': XLA,
  'reference': resolve_implementations(REFERENCE_CONFIG, 'cpu'),
  # Tests replace an op by one of their own.
  'dense': XLA,
}
