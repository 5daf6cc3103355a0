"""What tests of modules compute the ops by."""

from abstractinator.config import ImplementationConfig
from abstractinator.ops.implementation import Implementations

XLA = Implementations.everywhere('xla')
XLA_CONFIG = ImplementationConfig.everywhere('xla')
REFERENCE_CONFIG = ImplementationConfig.everywhere('reference')
BY_NAME = {
  'xla': XLA,
  'reference': Implementations.everywhere('reference'),
  # Tests put an op of their own in the place of ours.
  'dense': XLA,
}
