"""Dictionaries of a few words, in models with random parameters."""

import copy

import jax.numpy as jnp
import numpy as np

from abstractinator.ops import dictionary
from abstractinator.types import EOS_ID

# The words of a text by the rule 'space', and the end of a document.
WORDS = (b'the ', b'th', b'cat ', b'and ', b'a ', b'dog ')
KNOWN = [*(tuple(word) for word in WORDS), (EOS_ID,)]
# One code stays without a segment.
SIZE = len(KNOWN) + 2
# Settings of a first level, for `tiny_hierarchy.edited`.
LEVEL = {
  'segmentation.rule': 'space',
  'segmentation.threshold': 0.0,
  'segmentation.target_length': None,
  'quantizer.kind': 'dictionary',
  'quantizer.codebook_size': SIZE,
}


def filled(variables):
  """Returns variables whose dictionary has `KNOWN`."""
  variables = copy.copy(variables)
  level = variables['vq']['level_0']
  (*_, longest) = level['compressor']['quantizer']['table'].shape
  table = dictionary.table_of(KNOWN, SIZE - 1, longest)
  variables['vq'] = variables['vq'] | {
    'level_0': {'compressor': {'quantizer': {'table': jnp.asarray(table)}}}
  }
  return variables


def text(size, seed=0):
  """Returns a text of known words and others, which ends with a word."""
  rng = np.random.default_rng(seed)
  words = [*WORDS[:1], *WORDS[2:], b'elk ', b'xylophones ']
  found = b''
  while len(found) < size:
    found += words[rng.integers(len(words))]
  return found
