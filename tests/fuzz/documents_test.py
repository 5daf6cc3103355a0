"""Documents that are damaged, hostile or made at random."""

import functools
import gzip
import io
import json
import lzma
import os
import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from abstractinator.data import arrays, compressed, records, sources
from tests.helpers import fuzz
from tests.helpers.document_files import contents

TEXTS = ['one', 'zwü', '', 'three "quoted"\n', 'four' * 40]
WORDS = (
  *(b'{"text": "', b'"}', b'{', b'}', b'[', b']', b'"', b'\\', b'\\ud800'),
  *(b'\n', b'\r', b' ', b'null', b'1e999', b'9' * 5000, b'-', b'text', b':'),
  *(b'\xff', b'\xef\xbb\xbf', 'ü'.encode(), b'\0', b'[' * 3000, b','),
)


def _read(folder, vocab_size=256):
  """Returns the documents of a folder, each read as a whole and in slices."""
  # Files follow each other within the time that a file system resolves.
  for cache in (records._parquet_group, records._record_file, arrays._map):
    cache.cache_clear()
  compressed._SPOOL._places.clear()
  documents = sources.find_documents(f'{folder}/**', vocab_size)
  texts = contents(documents)
  for document, text in zip(documents, texts, strict=True):
    middle = document.length // 2
    assert len(text) == document.length > 0
    assert list(document.read(middle, document.length)) == list(text[middle:])
  return texts


def _lines(random, folder):
  """Lines of JSON fragments; Python's own parser says what is right."""
  count = int(random.integers(1, 6))
  content = b''.join(WORDS[i] for i in random.integers(len(WORDS), size=count))
  if random.integers(2):
    content = json.dumps({'text': content.decode(errors='replace')}).encode()
  lines = [json.dumps({'text': text}).encode() for text in TEXTS]
  lines.insert(int(random.integers(len(lines))), content)
  ending = random.choice(['.jsonl', '.NDJSON', '.json'])
  (folder / f'a{ending}').write_bytes(b'\n'.join(lines))
  found = _read(folder)
  expected = []
  for line in b'\n'.join(lines).split(b'\n'):
    if line.strip():
      text = json.loads(line)['text']
      expected += [text.encode()] if text else []
  assert found == expected


def _mutated_lines(random, folder):
  """Mutated lines; a line that is read is one that Python reads alike."""
  lines = b'\n'.join(json.dumps({'text': text}).encode() for text in TEXTS)
  content = fuzz.mutate(random, lines)
  (folder / 'a.jsonl').write_bytes(content)
  found = _read(folder)
  parsed = [json.loads(x)['text'] for x in content.split(b'\n') if x.strip()]
  assert found == [text.encode() for text in parsed if text]


def _compressed(random, folder):
  """Mutated gzip and xz, which have checksums: the right text or none."""
  text = bytes(random.integers(97, 100, int(random.integers(1, 5000))))
  compress = {'gz': gzip.compress, 'xz': lzma.compress}
  ending = str(random.choice([*compress]))
  content = compress[ending](text)
  # Not the first bytes, without which it is a file of bytes.
  (folder / f'a.{ending}').write_bytes(
    content[:6] + fuzz.mutate(random, content[6:])
  )
  # A gzip file may say that it has a name or a comment, in its flags.
  assert _read(folder) in ([text], [text + text])


@functools.cache
def _parquet() -> bytes:
  buffer = io.BytesIO()
  table = pyarrow.table({'id': range(5), 'text': TEXTS})
  pyarrow.parquet.write_table(table, buffer, row_group_size=2)
  return buffer.getvalue()


def _mutated_parquet(random, folder):
  """Mutated Parquet: no row is lost."""
  (folder / 'a.parquet').write_bytes(fuzz.mutate(random, _parquet()))
  documents = sources.find_documents(f'{folder}/a.parquet')
  assert {document.number for document in documents} <= set(range(5))
  assert 0 < len(_read(folder)) <= 5


@functools.cache
def _array_record(root: pathlib.Path) -> bytes:
  path = root / 'whole'
  writer = ArrayRecordWriter(str(path), 'group_size:2')
  for text in TEXTS:
    writer.write(text.encode())
  writer.close()
  content = path.read_bytes()
  path.unlink()
  return content


def _mutated_array_record(random, folder):
  """Mutated ArrayRecord, which has checksums: all records or none."""
  whole = _array_record(folder)
  (folder / 'a.arrayrecord').write_bytes(fuzz.mutate(random, whole))
  assert _read(folder) == [text.encode() for text in TEXTS if text]


def _mutated_array(random, folder):
  """Mutated arrays of ids: as many as the file has room for, in their range."""
  shape = [(40,), (4, 10), (2, 4, 5)][random.integers(3)]
  dtype = random.choice(['u1', '<u2', '>i4', '<i8', '<f4', '?', 'S4'])
  buffer = io.BytesIO()
  ids = random.integers(0, 100, shape)
  np.save(
    buffer, np.asarray(ids, order=random.choice(['C', 'F'])).astype(dtype)
  )
  content = buffer.getvalue()
  head = content[:128]
  if random.integers(4):
    head = fuzz.mutate(random, head)
  (folder / 'a.npy').write_bytes(head + content[128:])
  found = np.concatenate(_read(folder, 1000))
  assert found.size * 1 <= 160 + len(head)
  assert 0 <= found.min() <= found.max() < 1000
  if head == content[:128]:
    assert found.tolist() == ids.reshape(-1).tolist()


NAMES = ('a', 'b', '[', ']', '?', '*', '[a]', '[!a]', '{', '~', ' ', '$x', '-')


def _names(random, folder):
  """Files of any name, links in circles: one document per real file."""
  directories = [folder]
  for number in range(int(random.integers(1, 9))):
    parent = directories[random.integers(len(directories))]
    name = ''.join(random.choice(NAMES, int(random.integers(1, 4))))
    path = parent / f'{name}{number}'
    match random.integers(5):
      case 0:
        path.mkdir()
        directories.append(path)
      case 1:
        path.symlink_to(directories[random.integers(len(directories))])
      case 2:
        path.symlink_to(folder / str(random.choice(NAMES)))
      case _:
        path.write_bytes(b'%d' % number)
  os.chdir(directories[-1])
  real = {}
  for directory, _, files in os.walk(folder):
    for file in files:
      path = os.path.join(directory, file)
      if os.path.isfile(path) and not os.path.islink(path):
        with open(path, 'rb') as opened:
          real[path] = opened.read()
  # A glob of all, each file by its own name, and a relative glob.
  escaped = str(folder)
  found = sources.find_documents(f'{escaped}/**')
  assert sorted(contents(found)) == sorted(real.values())
  for path, content in real.items():
    if ',' not in path and not set('?*') & set(path[len(escaped) :]):
      (document,) = sources.find_documents(path)
      assert document.read_bytes() == content
  below = [x for x in real if x.startswith(f'{directories[-1]}{os.sep}')]
  if below:
    assert len(sources.find_documents('**')) >= len(below)


@pytest.mark.nightly
@pytest.mark.parametrize(
  ('case', 'count', 'right', 'refused'),
  [
    (_lines, 600, 50, 50),
    (_mutated_lines, 600, 50, 50),
    (_compressed, 500, 1, 100),
    (_mutated_parquet, 600, 20, 20),
    (_mutated_array_record, 300, 1, 20),
    (_mutated_array, 600, 20, 50),
    (_names, 400, 100, 20),
  ],
)
def test_documents(case, count, right, refused, tmp_path):
  counts = fuzz.run(case, count, tmp_path)
  assert counts.total() == count
  assert counts['right'] >= right
  assert counts['refused'] >= refused
