"""Quantizers by the names that configs give them."""

from abstractinator.model.dictionary_quantizer import DictionaryQuantizer
from abstractinator.model.quantizers import (
  FiniteScalarQuantizer,
  Quantizer,
  ResidualVectorQuantizer,
  VectorQuantizer,
)

QUANTIZERS: dict[str, type[Quantizer]] = {
  'vq': VectorQuantizer,
  'rvq': ResidualVectorQuantizer,
  'fsq': FiniteScalarQuantizer,
  'dictionary': DictionaryQuantizer,
}
