"""The quantizers by name."""

from abstractinator.modules.finite_scalar_quantizer import FiniteScalarQuantizer
from abstractinator.modules.residual_vector_quantizer import (
  ResidualVectorQuantizer,
)
from abstractinator.modules.vector_quantizer import VectorQuantizer

# By `quantizer.kind`.
QUANTIZERS = {
  'vq': VectorQuantizer,
  'rvq': ResidualVectorQuantizer,
  'fsq': FiniteScalarQuantizer,
}
