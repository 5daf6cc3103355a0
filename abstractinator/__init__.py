"""A hierarchical autoencoder over bytes, and a language model over its codes.

    pyramid = abstractinator.load('RUN')
    codes = pyramid.encode(b'some text')
    pyramid.decode(codes)

`load` opens a trained run; `read_codes`, `write_codes` and `read_corpus` handle
files of codes. The modules have the names of the original project. Everything
is imported at first use, so that `import abstractinator` stays cheap.
"""

import importlib
import importlib.metadata
from typing import Any

# Public names and the modules that define them.
_DEFINED_IN = {
  'Abstractinator': 'model.level',
  'AbstractinatorPyramid': 'decoding.pyramid',
  'CodeSequenceTransformer': 'model.top_lm',
  'Codes': 'codes.codes',
  'DecoderOnlyExpanderRVQ': 'model.expander',
  'DictionaryQuantizer': 'model.dictionary_quantizer',
  'EntropyModel': 'model.entropy_model',
  'FiniteScalarQuantizer': 'model.quantizers',
  'LearnedQueryAttention': 'model.pooling',
  'ResidualVectorQuantizer': 'model.quantizers',
  'SegmentCompressor': 'model.compressor',
  'TrainedPyramid': 'inference',
  'VectorQuantizer': 'model.quantizers',
  'load': 'inference',
  'read_codes': 'codes.files',
  'read_corpus': 'codes.corpus',
  'write_codes': 'codes.files',
}

__version__ = importlib.metadata.version(__name__)
__all__ = sorted([*_DEFINED_IN, '__version__'])


def __getattr__(name: str) -> Any:
  if name in _DEFINED_IN:
    module = importlib.import_module(f'{__name__}.{_DEFINED_IN[name]}')
    return getattr(module, name)
  raise AttributeError(
    f'module {__name__!r} has no attribute {name!r}, allowed:'
    f' {", ".join(__all__)}'
  )


def __dir__() -> list[str]:
  return __all__
