"""Codes of a corpus: shards in a directory, and a manifest that lists them.

A shard is a file of codes, see `files`. It appears whole or not at all, and
then in the manifest, so that an encoder that was stopped can be resumed. The
manifest has checksums of the shards and of itself.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from abstractinator.codes import files
from abstractinator.codes.codes import Codes
from abstractinator.data.documents import Document, Documents
from abstractinator.data.whole_files import TEMPORARY, write_whole

MANIFEST = 'manifest.json'
_VERSION = 1
_CHECKSUM = 'checksum'
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
    ValueError: If the directory holds another corpus, run or division, or a
      manifest that cannot be mended.
    OSError: If a file cannot be read or written.
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
  shards = _prepare(directory, wanted, documents)
  for number, (first, stop) in enumerate(_spans(documents, shard_bytes)):
    name = f'{number:05}.{kind}'
    if name in shards and _is_whole(directory, shards[name]):
      continue
    codes = encode([x.read_bytes() for x in documents[first:stop]])
    content = files.to_bytes(name, codes)
    write_whole(os.path.join(directory, name), content)
    shards[name] = _entry(
      name, first, documents[first:stop], codes, zlib.crc32(content)
    )
    # Later shards of an earlier call stay listed until their turn comes.
    _write_manifest(directory, wanted, shards)
    yield shards[name]


def read_manifest(directory: str) -> dict[str, Any]:
  """Reads the manifest: `about` of `encode_corpus`, `data`, `shards`.

  Raises:
    ValueError: If there is no manifest, or it is damaged or has no checksum.
    OSError: If it cannot be read.
  """
  path = os.path.join(directory, MANIFEST)
  if not os.path.exists(path):
    raise ValueError(
      f'{directory}: has no {MANIFEST}, allowed: what `abstractinator encode'
      ' --data` wrote'
    )
  manifest, is_sound = _parse(path)
  if not is_sound:
    state = 'is damaged' if _CHECKSUM in manifest else f'has no {_CHECKSUM}'
    raise ValueError(
      f'{path}: {state}, allowed: what `abstractinator encode` wrote; the same'
      ' command mends it and keeps the codes that are whole'
    )
  try:
    numbers = [manifest['data'][name] for name in ('num_texts', 'num_bytes')]
    for shard in manifest['shards']:
      numbers += [shard[name] for name in _NUMBERS]
      # A name without directories: nothing is read or written elsewhere.
      if shard['file'] != os.path.basename(shard['file']):
        raise ValueError
    if not all(type(number) is int and number >= 0 for number in numbers):
      raise TypeError
  except (ValueError, KeyError, TypeError) as error:
    raise _no_manifest(path) from error
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
    codes = files.read_codes(path) if _is_whole(directory, shard) else []
    if [len(codes), _num_codes(codes)] != [
      shard['num_texts'],
      shard['num_codes'],
    ]:
      raise ValueError(
        f'{path}: is missing or damaged; the same `abstractinator encode`'
        ' writes it anew'
      )
    yield codes


def _prepare(
  directory: str, wanted: Mapping[str, Any], documents: Documents
) -> dict[str, dict[str, Any]]:
  """Makes a directory ready; returns the entries of its shards by file."""
  os.makedirs(directory, exist_ok=True)
  path = os.path.join(directory, MANIFEST)
  shards: dict[str, dict[str, Any]] = {}
  if not os.path.exists(path):
    if any(not name.startswith(TEMPORARY) for name in os.listdir(directory)):
      raise ValueError(
        f'{directory}: has files but no {MANIFEST}, allowed: a directory with'
        ' nothing there, or one to go on with'
      )
    # Written before the first shard, so that a stop in that one can be resumed.
    _write_manifest(directory, wanted, shards)
    return shards
  manifest, is_sound = _parse(path)
  for name, value in wanted.items():
    found = manifest.get(name)
    if name == 'data' and not is_sound and isinstance(found, dict):
      # The numbers follow from the names and lengths that are hashed.
      found = value | {'sha256': found.get('sha256')}
    if found != value:
      raise ValueError(
        f'{path}: {name} is {found}, allowed: {value}, or a directory with'
        ' nothing there'
      )
  if is_sound:
    return {
      shard['file']: shard for shard in read_manifest(directory)['shards']
    }
  shards = _mend(directory, manifest.get('shards'), wanted, documents)
  _write_manifest(directory, wanted, shards)
  return shards


def _mend(
  directory: str, listed: Any, wanted: Mapping[str, Any], documents: Documents
) -> dict[str, dict[str, Any]]:
  """Returns entries of the shards whose files have the checksums listed.

  All else in the entries is computed anew.
  """
  checksums = {
    str(shard.get('file')): shard.get('crc32')
    for shard in (listed if isinstance(listed, list) else [])
    if isinstance(shard, dict)
  }
  shards = {}
  spans = _spans(documents, wanted['shard_bytes'])
  for number, (first, stop) in enumerate(spans):
    name = f'{number:05}.{wanted["kind"]}'
    shard: dict[str, Any] = {'file': name, 'crc32': checksums.get(name)}
    if _is_whole(directory, shard):
      codes = files.read_codes(os.path.join(directory, name))
      if len(codes) == stop - first:
        shards[name] = _entry(
          name, first, documents[first:stop], codes, shard['crc32']
        )
  return shards


def _entry(
  name: str,
  first: int,
  documents: Sequence[Document],
  codes: Sequence[Codes],
  crc32: int,
) -> dict[str, Any]:
  """Returns what the manifest says of a shard."""
  return {
    'file': name,
    'first_text': first,
    'num_texts': len(documents),
    'num_bytes': sum(document.length for document in documents),
    'num_codes': _num_codes(codes),
    'crc32': crc32,
  }


def _num_codes(codes: Sequence[Codes]) -> int:
  return sum(len(text.codes_N) for text in codes)


def _parse(path: str) -> tuple[dict[str, Any], bool]:
  """Returns a manifest, and whether its checksum is right."""
  try:
    with open(path, encoding='utf-8') as file:
      manifest = json.load(file)
    if not isinstance(manifest, dict):
      raise TypeError
    return manifest, manifest.get(_CHECKSUM) == _checksum(manifest)
  # No JSON, no UTF-8, or nested too deeply.
  except (ValueError, TypeError, RecursionError) as error:
    raise _no_manifest(path) from error


def _no_manifest(path: str) -> ValueError:
  return ValueError(
    f'{path}: is no manifest, allowed: what `abstractinator encode` wrote, or a'
    ' directory with nothing there to write to'
  )


def _checksum(manifest: Mapping[str, Any]) -> str:
  """Returns a sha256 in hex over all but the checksum."""
  rest = {key: manifest[key] for key in manifest if key != _CHECKSUM}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


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
  directory: str,
  about: Mapping[str, Any],
  shards: Mapping[str, Mapping[str, Any]],
) -> None:
  manifest = {
    **about,
    'shards': sorted(shards.values(), key=lambda shard: shard['first_text']),
  }
  manifest[_CHECKSUM] = _checksum(manifest)
  content = json.dumps(manifest, indent=1).encode()
  write_whole(os.path.join(directory, MANIFEST), content)
