"""Codes of a corpus: shards in a directory, and a manifest that lists them.

A shard is a file of codes, see `files`. It appears whole or not at all, and
then in the manifest, so that an encoder that was stopped can be resumed.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from abstractinator.codes import files
from abstractinator.codes.codes import Codes
from abstractinator.data.documents import Documents
from abstractinator.data.whole_files import TEMPORARY, write_whole

MANIFEST = 'manifest.json'
_VERSION = 1
# Numbers that the manifest lists for a shard, besides its `file`.
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
  """Writes the codes of documents, one shard after the other.

  Args:
    directory: Directory to write to, created if need be. Shards that are there
      and whole are kept.
    documents: The corpus.
    encode: Function from texts to their codes.
    about: Description of the codes for the manifest, as JSON values.
    shard_bytes: Bytes of text, at least 1, after which a shard ends, with a
      whole document.
    kind: Format of shards, 'parquet' or 'npz'.

  Yields:
    The entry in the manifest of each shard that was written now: `file`,
    `first_text`, `num_texts`, `num_bytes`, `num_codes`, `crc32`.

  Raises:
    ValueError: If the directory holds another corpus, run or division.
  """
  wanted = {
    'version': _VERSION,
    **about,
    'data': {
      'num_texts': len(documents),
      'num_bytes': int(documents.lengths.sum()),
      'sha256': documents.sha256(),
    },
    'shard_bytes': shard_bytes,
    'kind': kind,
  }
  there = _prepare(directory, wanted)
  for number, (first, stop) in enumerate(_spans(documents, shard_bytes)):
    if first in there and _is_whole(directory, there[first]):
      continue
    texts = [x.read_bytes() for x in documents[first:stop]]
    name = f'{number:05}.{kind}'
    codes = encode(texts)
    content = files.to_bytes(name, codes)
    write_whole(os.path.join(directory, name), content)
    there[first] = {
      'file': name,
      'first_text': first,
      'num_texts': len(texts),
      'num_bytes': sum(map(len, texts)),
      'num_codes': sum(len(x.codes_N) for x in codes),
      'crc32': zlib.crc32(content),
    }
    # Later shards of an earlier call stay listed until their turn comes.
    _write_manifest(directory, wanted, [there[key] for key in sorted(there)])
    yield there[first]


def read_manifest(directory: str) -> dict[str, Any]:
  """Reads the manifest: `about` of `encode_corpus`, `data`, `shards`.

  Raises:
    ValueError: If there is no manifest, or it cannot be read.
  """
  path = os.path.join(directory, MANIFEST)
  if not os.path.exists(path):
    raise ValueError(
      f'{directory}: has no {MANIFEST}, allowed: what `abstractinator encode'
      ' --data` wrote'
    )
  try:
    with open(path, encoding='utf-8') as file:
      manifest = json.load(file)
    numbers = [manifest['data'][name] for name in ('num_texts', 'num_bytes')]
    for shard in manifest['shards']:
      numbers += [shard[name] for name in _NUMBERS]
      # A name without directories: nothing is read or written elsewhere.
      if shard['file'] != os.path.basename(shard['file']):
        raise ValueError
    if not all(isinstance(number, int) for number in numbers):
      raise TypeError
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'{path}: is no manifest, allowed: what `abstractinator encode` wrote'
    ) from error
  return manifest


def read_corpus(directory: str) -> Iterator[list[Codes]]:
  """Reads the codes that `encode_corpus` wrote, a shard at a time.

  Args:
    directory: Directory of the corpus.

  Yields:
    The codes of the texts of a shard, in the order of the corpus.

  Raises:
    ValueError: If shards are missing or damaged.
    OSError: If a file cannot be read.
  """
  manifest = read_manifest(directory)
  found = sum(shard['num_texts'] for shard in manifest['shards'])
  expected = manifest['data']['num_texts']
  if found != expected:
    raise ValueError(
      f'{os.path.join(directory, MANIFEST)}: lists {found} texts, allowed: all'
      f' {expected}; the same `abstractinator encode` goes on'
    )
  for shard in manifest['shards']:
    path = os.path.join(directory, shard['file'])
    if not _is_whole(directory, shard):
      raise ValueError(
        f'{path}: is missing or damaged; the same `abstractinator encode`'
        ' writes it anew'
      )
    yield files.read_codes(path)


def _prepare(
  directory: str, wanted: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
  """Makes a directory ready; returns the shards it lists by first text."""
  os.makedirs(directory, exist_ok=True)
  path = os.path.join(directory, MANIFEST)
  if os.path.exists(path):
    manifest = read_manifest(directory)
    for name, value in wanted.items():
      if manifest.get(name) != value:
        raise ValueError(
          f'{path}: {name} is {manifest.get(name)}, allowed: {value}, or a'
          ' directory with nothing there'
        )
    return {shard['first_text']: shard for shard in manifest['shards']}
  if any(not name.startswith(TEMPORARY) for name in os.listdir(directory)):
    raise ValueError(
      f'{directory}: has files but no {MANIFEST}, allowed: a directory with'
      ' nothing there, or one to go on with'
    )
  # Written before the first shard, so that a stop in that one can be resumed.
  _write_manifest(directory, wanted, [])
  return {}


def _spans(documents: Documents, shard_bytes: int) -> Iterator[tuple[int, int]]:
  """Yields the first document of each shard, and the one after its last."""
  first = size = 0
  for stop, document in enumerate(documents, start=1):
    size += document.length
    if size >= shard_bytes or stop == len(documents):
      yield first, stop
      first, size = stop, 0


def _is_whole(directory: str, shard: Mapping[str, Any]) -> bool:
  try:
    with open(os.path.join(directory, shard['file']), 'rb') as file:
      return zlib.crc32(file.read()) == shard['crc32']
  except FileNotFoundError:
    return False


def _write_manifest(
  directory: str, about: Mapping[str, Any], shards: list[dict[str, Any]]
) -> None:
  content = json.dumps({**about, 'shards': shards}, indent=1).encode()
  write_whole(os.path.join(directory, MANIFEST), content)
