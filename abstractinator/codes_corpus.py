"""Codes of a corpus: shards in a directory, and a manifest that lists them.

A shard is a file of `codes_files`. It appears whole or not at all, and then in
the manifest, so that whoever was stopped goes on where he was.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from abstractinator import codes_files
from abstractinator.codes import Codes
from abstractinator.data.documents import Documents

MANIFEST = 'manifest.json'
_VERSION = 1
# Of a shard, besides its `file`.
_NUMBERS = ('first_text', 'num_texts', 'num_bytes', 'num_codes', 'crc32')


def encode_corpus(
  directory: str,
  documents: Documents,
  encode: Callable[[Sequence[bytes]], list[Codes]],
  *,
  about: Mapping[str, Any],
  shard_bytes: int,
  kind: str,
) -> Iterator[dict[str, Any]]:
  """Writes the codes of documents, a shard after the other.

  Args:
    directory: Where to, created if need be. What lies there is gone on with.
    documents: The corpus.
    encode: From texts to their codes.
    about: What the codes are of, ready for JSON; it goes into the manifest.
    shard_bytes: Bytes of text after which a shard ends, with a whole document.
    kind: 'parquet' or 'npz'.

  Yields:
    What the manifest says of each shard that was written now: `file`,
    `first_text`, `num_texts`, `num_bytes`, `num_codes`, `crc32`.

  Raises:
    ValueError: If what lies there is of another corpus, run or division.
  """
  if shard_bytes < 1:
    raise ValueError(f'shard_bytes: got {shard_bytes}, allowed: at least 1')
  wanted = {
    'version': _VERSION,
    **about,
    'data': {
      'num_texts': documents.num_documents,
      'num_bytes': int(documents.lengths.sum()),
      'sha256': documents.fingerprint(),
    },
    'shard_bytes': shard_bytes,
    'kind': kind,
  }
  os.makedirs(directory, exist_ok=True)
  path = os.path.join(directory, MANIFEST)
  there = {}
  if os.path.exists(path):
    manifest = _read(path)
    for name, value in wanted.items():
      if manifest.get(name) != value:
        raise ValueError(
          f'{path}: {name} is {manifest.get(name)}, allowed: {value}, or a'
          ' directory with nothing there'
        )
    there = {shard['first_text']: shard for shard in manifest['shards']}
  elif set(os.listdir(directory)) - {os.path.basename(_temporary(path))}:
    raise ValueError(
      f'{directory}: has files but no {MANIFEST}, allowed: a directory with'
      ' nothing there, or one to go on with'
    )
  else:
    # Before the first shard: whoever is stopped in it goes on, too.
    _replace(path, json.dumps(wanted | {'shards': []}, indent=1).encode())
  for number, (first, stop) in enumerate(_spans(documents, shard_bytes)):
    if first not in there or not _is_whole(directory, there[first]):
      texts = [
        documents.read(i, 0, int(documents.lengths[i]))
        for i in range(first, stop)
      ]
      there[first] = _write(
        directory, f'{number:05}.{kind}', first, texts, encode
      )
      # With the later ones of another time, which are looked at in their turn.
      shards = [there[key] for key in sorted(there)]
      _replace(path, json.dumps(wanted | {'shards': shards}, indent=1).encode())
      yield there[first]


def read_manifest(directory: str) -> dict[str, Any]:
  """What is said of a corpus: `about` of `encode_corpus`, `data`, `shards`.

  Raises:
    ValueError: If there is no manifest, or it cannot be read.
  """
  path = os.path.join(directory, MANIFEST)
  if not os.path.exists(path):
    raise ValueError(
      f'{directory}: has no {MANIFEST}, allowed: what `abstractinator encode'
      ' --data` wrote'
    )
  return _read(path)


def read_corpus(directory: str) -> Iterator[list[Codes]]:
  """Reads what `encode_corpus` wrote, a shard at a time.

  Args:
    directory: Where it lies.

  Yields:
    The codes of the texts of a shard, in the order of the corpus.

  Raises:
    ValueError: If shards are missing or damaged.
    OSError: If something cannot be read.
  """
  path = os.path.join(directory, MANIFEST)
  manifest = read_manifest(directory)
  found = sum(shard['num_texts'] for shard in manifest['shards'])
  expected = manifest['data']['num_texts']
  if found != expected:
    raise ValueError(
      f'{path}: lists {found} texts, allowed: all {expected}; the same'
      ' `abstractinator encode` goes on'
    )
  for shard in manifest['shards']:
    if not _is_whole(directory, shard):
      raise ValueError(
        f'{os.path.join(directory, shard["file"])}: is missing or damaged; the'
        ' same `abstractinator encode` writes it anew'
      )
    yield codes_files.read_codes(os.path.join(directory, shard['file']))


def _spans(documents: Documents, shard_bytes: int) -> Iterator[tuple[int, int]]:
  """First document of each shard, and the one after its last."""
  first = size = 0
  for index, length in enumerate(documents.lengths.tolist()):
    size += length
    if size >= shard_bytes or index + 1 == documents.num_documents:
      yield first, index + 1
      first, size = index + 1, 0


def _write(directory, name, first, texts, encode) -> dict[str, Any]:
  codes = encode(texts)
  content = codes_files.to_bytes(name, codes)
  _replace(os.path.join(directory, name), content)
  return {
    'file': name,
    'first_text': first,
    'num_texts': len(texts),
    'num_bytes': sum(map(len, texts)),
    'num_codes': int(np.sum([len(x.codes_N) for x in codes])),
    'crc32': zlib.crc32(content),
  }


def _is_whole(directory: str, shard: Mapping[str, Any]) -> bool:
  try:
    with open(os.path.join(directory, shard['file']), 'rb') as file:
      return zlib.crc32(file.read()) == shard['crc32']
  except FileNotFoundError:
    return False


def _temporary(path: str) -> str:
  return f'{path}.tmp'


def _replace(path: str, content: bytes) -> None:
  temporary = _temporary(path)
  with open(temporary, 'wb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def _read(path: str) -> dict[str, Any]:
  try:
    with open(path, encoding='utf-8') as file:
      manifest = json.load(file)
    numbers = [manifest['data'][name] for name in ('num_texts', 'num_bytes')]
    for shard in manifest['shards']:
      numbers += [shard[name] for name in _NUMBERS]
      # A name alone: nothing is read or written elsewhere.
      if shard['file'] != os.path.basename(shard['file']):
        raise ValueError
    if not all(isinstance(number, int) for number in numbers):
      raise TypeError
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'{path}: is no manifest, allowed: what `abstractinator encode` wrote'
    ) from error
  return manifest
