"""Finding, reading, naming and splitting documents."""

import gzip
import hashlib
import os
import pickle
import sysconfig
from concurrent import futures

import numpy as np
import pytest

from abstractinator.data import sources
from abstractinator.data.documents import Documents, MemoryDocument
from tests.helpers.document_files import contents, names, write

ALL_BYTES = bytes(range(256))


def test_files_are_found_sorted_once_and_without_directories(tmp_path):
  write(tmp_path, b_txt=b'bb', a_txt=ALL_BYTES, sub__c_txt=b'c', sub__d_py=b'd')
  documents = sources.find_documents(
    f'{tmp_path}/**/*.txt, {tmp_path}/b.txt,{tmp_path}/sub/../a*,{tmp_path}/*'
  )
  assert names(documents) == ['a.txt', 'b.txt', 'sub/c.txt']
  assert contents(documents) == [ALL_BYTES, b'bb', b'c']
  assert documents.lengths.dtype == np.int64
  assert documents[0].read(254, 256) == b'\xfe\xff'
  assert documents[0].read(256, 256) == b''


def test_home_is_expanded(tmp_path, monkeypatch):
  write(tmp_path, a_txt=b'a')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert names(sources.find_documents('~/*.txt')) == ['a.txt']


def test_lines_of_jsonl_are_documents(tmp_path):
  write(
    tmp_path,
    a_jsonl=b'{"text": "one"}\r\n\n  \n{"id": 2, "text": "\\u00fc\xc3\xbc\\n"}',
    b_txt=b'{"text": "a file is not parsed"}',
  )
  documents = sources.find_documents(f'{tmp_path}/*')
  assert names(documents) == ['a.jsonl:1', 'a.jsonl:4', 'b.txt']
  assert documents.lengths.tolist() == [3, 5, 32]
  assert contents(documents)[:2] == [b'one', 'üü\n'.encode()]
  assert documents[1].read(1, 3) == 'üü'.encode()[1:3]


@pytest.mark.parametrize(
  ('line', 'reason'),
  [
    (b'["text"]', 'has no string "text"'),
    (b'{"txt": "a"}', 'has no string "text"'),
    (b'{"text": 3}', 'has no string "text"'),
    (b'[' * 100_000, 'is nested too deeply'),
    (b'{"text": ' + b'[' * 100_000, 'is nested too deeply'),
    (b'{"text": "a"', "Expecting ',' delimiter"),
    (b'{"text": "\xff"}', "can't decode byte 0xff"),
    (b'{"text": "\\ud800"}', 'surrogates not allowed'),
  ],
)
def test_bad_line_is_named(tmp_path, line, reason):
  write(tmp_path, a_jsonl=b'{"text": "fine"}\n\n' + line + b'\n')
  with pytest.raises(ValueError) as info:
    sources.find_documents(f'{tmp_path}/*')
  message = str(info.value)
  assert message.startswith(f'{tmp_path}/a.jsonl:3: ')
  assert reason in message
  assert message.endswith('allowed: an object with a string "text"')
  assert '\n' not in message


def test_empty_documents_and_broken_links_are_said_once(tmp_path, caplog):
  write(
    tmp_path,
    a_txt=b'',
    b_jsonl=b'{"text": ""}\n{"text": "b"}\n{"text": null}',
    c_jsonl=b'\n \n',
    d_txt=b'd',
    e_npy=b'',
  )
  np.save(tmp_path / 'f.npy', np.zeros((0, 3), int))
  (tmp_path / 'g.txt').symlink_to('gone')
  (tmp_path / 'h.txt').symlink_to('h.txt')
  documents = sources.find_documents(f'{tmp_path}/*')
  assert names(documents) == ['b.jsonl:2', 'd.txt']
  (said,) = [record.getMessage() for record in caplog.records]
  assert said == (
    f"'{tmp_path}/*': passed over:"
    f' empty: 5 (the first is {tmp_path}/a.txt),'
    f' null: 1 (the first is {tmp_path}/b.jsonl:3),'
    f' broken links: 2 (the first is {tmp_path}/g.txt)'
  )


@pytest.mark.parametrize(
  ('name', 'content'), [('e.txt', b''), ('e.jsonl', b''), ('e.jsonl', b'\n \n')]
)
def test_a_corpus_of_nothing_is_refused(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  (tmp_path / 'z').symlink_to('gone')
  with pytest.raises(ValueError) as info:
    sources.find_documents(f'{tmp_path}/*')
  assert str(info.value) == (
    f"'{tmp_path}/*': has no document with content, allowed: at least 1; passed"
    f' over: empty: 1 (the first is {tmp_path}/{name}), broken links: 1 (the'
    f' first is {tmp_path}/z)'
  )


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_forbidden_file_is_named_with_the_reason(tmp_path):
  write(tmp_path, a_txt=b'a')
  (tmp_path / 'a.txt').chmod(0)
  with pytest.raises(ValueError, match=r'a\.txt: cannot be read: Permission'):
    sources.find_documents(f'{tmp_path}/*')


def test_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(ValueError, match='pipe: is not a regular file'):
    sources.find_documents(f'{tmp_path}/*')


@pytest.mark.parametrize(
  ('name', 'content', 'reason'),
  [
    ('a.txt', b'ab', 'a.txt: has changed: got 2 bytes .* allowed: 5'),
    ('a.jsonl', b'{"text": "abcd" }', 'a.jsonl:1: has changed: got 4'),
    ('a.jsonl', b'{"text":"abcdef"}', 'a.jsonl:1: has changed: got 6'),
    ('a.jsonl', b'{"text": 12345  }', 'a.jsonl:1: has no string'),
  ],
)
def test_changed_file_is_noticed(tmp_path, name, content, reason):
  path = tmp_path / name
  path.write_bytes(b'{"text": "abcde"}' if 'json' in name else b'abcde')
  documents = sources.find_documents(str(path))
  assert documents[0].read(0, 5) == b'abcde'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=reason):
    documents[0].read(0, 5)


def test_sha256_sees_names_and_sizes_but_not_the_location(tmp_path):
  def sha256(root, **files):
    write(tmp_path / root, **files)
    return sources.find_documents(f'{tmp_path}/{root}/**').sha256()

  here = sha256('here', a_txt=b'a', sub__b_txt=b'bb')
  assert len(here) == 64
  assert here == sha256('far/away', a_txt=b'a', sub__b_txt=b'bb')
  assert here != sha256('size', a_txt=b'a', sub__b_txt=b'bbb')
  assert here != sha256('name', a_txt=b'a', sub__c_txt=b'bb')
  assert here != sha256('more', a_txt=b'a', sub__b_txt=b'bb', z_txt=b'z')


def test_order_does_not_depend_on_where_the_roots_are(tmp_path):
  for one, two in (('a', 'b'), ('d', 'c')):
    write(tmp_path / one, x_txt=b'1', y_txt=b'2')
    write(tmp_path / two, x_txt=b'333', y_txt=b'4')
  first = sources.find_documents(f'{tmp_path}/a/*,{tmp_path}/b/*')
  second = sources.find_documents(f'{tmp_path}/d/*,{tmp_path}/c/*')
  assert contents(first) == [b'1', b'333', b'2', b'4']
  assert contents(second) == contents(first)
  assert second.sha256() == first.sha256()


def test_documents_can_be_pickled_and_read_from_threads(tmp_path):
  files = {f'f{i}_txt': bytes([i]) * (i + 1) for i in range(20)}
  files['z_jsonl'] = b'{"text": "zz"}\n' * 20
  documents = sources.find_documents(f'{write(tmp_path, **files)}/*')
  documents = pickle.loads(pickle.dumps(documents))
  expected = contents(documents)
  with futures.ThreadPoolExecutor(8) as pool:
    for _ in range(5):
      read = pool.map(lambda x: x.read(0, x.length), documents)
      assert list(read) == expected


def test_name_that_is_not_utf8_can_be_hashed(tmp_path):
  with open(os.fsencode(tmp_path) + b'/\xff.txt', 'wb') as file:
    file.write(b'a')
  documents = sources.find_documents(f'{tmp_path}/*')
  assert len(documents.sha256()) == 64
  with pytest.raises(ValueError, match='1 documents'):
    sources.split(documents, 0.5)


def test_standard_library_has_sources_and_topics_only():
  documents = sources.standard_library()
  found = names(documents)
  files = [name for name in found if not name.startswith('topics/')]
  assert {'os.py', 'json/decoder.py', 'topics/for', 'topics/lambda'} < {*found}
  assert files == sorted(files)
  assert len({*found}) == len(found)
  parts = {part for name in files for part in name.split('/')}
  assert not parts & {'site-packages', 'test', 'tests', 'encodings', '..'}
  assert not [part for part in parts if part.startswith('test_')]
  assert all(name.endswith('.py') for name in files)
  assert documents.lengths.min() > 0
  assert 5e6 < documents.lengths.sum() < 2e7
  i = found.index('os.py')
  with open(os.__file__, 'rb') as file:
    assert documents[i].read(0, documents.lengths[i]) == file.read()
  assert b'"for"' in documents[found.index('topics/for')].read(0, 500)


def test_standard_library_skips_tests_and_empty_files(tmp_path, monkeypatch):
  write(
    tmp_path,
    b_py=b'b',
    a__c_py=b'c',
    a__empty_py=b'',
    a__tests__d_py=b'd',
    a__idlelib__d_py=b'd',
    e_txt=b'e',
  )
  (tmp_path / 'test_f.py').write_bytes(b'f')
  monkeypatch.setattr(sysconfig, 'get_paths', lambda: {'stdlib': str(tmp_path)})
  found = names(sources.standard_library())
  assert [n for n in found if not n.startswith('topics/')] == ['a/c.py', 'b.py']


def test_files_of_bytes_on_demand(tmp_path):
  line = b'{"text": "a"}'
  write(tmp_path, a_jsonl=line, b_json=b'{\n}', c_JSONL=line, d_ndjson=line)
  write(tmp_path, e_gz=gzip.compress(b'e'))
  documents = sources.find_documents(f'raw:{tmp_path}/*')
  assert names(documents) == [
    'a.jsonl',
    'b.json',
    'c.JSONL',
    'd.ndjson',
    'e.gz',
  ]
  assert contents(documents)[:2] == [line, b'{\n}']
  assert contents(documents)[4] == gzip.compress(b'e')
  # The pattern that comes first says how a file is read.
  both = sources.find_documents(f'{tmp_path}/a.jsonl,raw:{tmp_path}/[ab]*')
  assert names(both) == ['a.jsonl:1', 'b.json']


def test_endings_of_json_lines(tmp_path):
  line = b'{"text": "a"}'
  write(tmp_path, a_JSONL=line, b_ndjson=line, c_json=line, d_JsonL_GZ=b'')
  (tmp_path / 'd.JsonL.GZ').write_bytes(gzip.compress(line))
  documents = sources.find_documents(f'{tmp_path}/*')
  assert contents(documents) == [b'a'] * 4
  assert names(documents)[3] == 'd.JsonL.GZ:1'
  write(tmp_path, e_json=b'[\n{"text": "a"}\n]')
  with pytest.raises(ValueError, match=r'e\.json:1: .*`raw:` before the path'):
    sources.find_documents(f'{tmp_path}/*')


def test_missing_standard_library_says_what_to_do(monkeypatch):
  zipped = '/nowhere/python311.zip'
  monkeypatch.setattr(sysconfig, 'get_paths', lambda: {'stdlib': zipped})
  with pytest.raises(ValueError) as info:
    sources.standard_library()
  assert str(info.value).startswith(f'data.train: the default corpus, {zipped}')
  assert '--config.data.train' in str(info.value)


def in_memory(count):
  return Documents([MemoryDocument(f'd{i}', b'x') for i in range(count)])


def test_split_is_a_partition_of_about_the_fraction():
  documents = in_memory(2000)
  train, validation = sources.split(documents, 0.1)
  assert sorted(names(train) + names(validation)) == sorted(names(documents))
  # Five standard deviations of a binomial of 2000 at 0.1.
  assert abs(len(validation) - 200) < 67
  order = names(documents).index
  assert [*map(order, names(train))] == sorted(map(order, names(train)))


def test_split_keeps_sides_when_documents_come_or_the_fraction_grows():
  few = {*names(sources.split(in_memory(300), 0.1)[1])}
  many = {*names(sources.split(in_memory(600), 0.1)[1])}
  assert many & {*names(in_memory(300))} == few
  assert few < {*names(sources.split(in_memory(300), 0.2)[1])}


def test_split_is_the_same_in_every_process_and_version():
  # `printf d5 | sha1sum` begins with 16b4, d6 with 195e, the others are above
  # 4000; as fractions 0.0887, 0.0991 and over 0.25.
  for fraction, expected in ((0.09, ['d5']), (0.1, ['d5', 'd6'])):
    _, validation = sources.split(in_memory(10), fraction)
    assert names(validation) == expected


@pytest.mark.parametrize('count', [2, 3, 12])
def test_split_holds_out_at_least_one_and_not_all(count):
  documents = in_memory(count)
  order = sorted(
    names(documents), key=lambda name: hashlib.sha1(name.encode()).hexdigest()
  )
  # No hash is that small or that large; those next to the ends are moved.
  assert names(sources.split(documents, 1e-9)[1]) == [order[0]]
  assert names(sources.split(documents, 1 - 1e-9)[0]) == [order[-1]]


def test_split_of_files_that_share_a_name():
  documents = Documents([MemoryDocument('x', text) for text in (b'1', b'2')])
  train, validation = sources.split(documents, 0.2)
  assert (contents(train), contents(validation)) == ([b'2'], [b'1'])


def test_split_of_twelve_files_holds_one_out(tmp_path):
  for number in range(12):
    (tmp_path / f'part{number}.txt').write_bytes(b'text')
  documents = sources.find_documents(f'{tmp_path}/*')
  train, validation = sources.split(documents, 0.02)
  assert (len(train), len(validation)) == (11, 1)


@pytest.mark.parametrize('count', [0, 1])
def test_split_of_too_few_documents_says_what_to_do(count):
  with pytest.raises(ValueError) as info:
    sources.split(in_memory(count), 0.5)
  assert str(info.value) == (
    f'data.validation_fraction: 0.5 of {count} documents puts {count} in train'
    ' and 0 in validation, allowed: at least 1 in each; pass data.validation or'
    ' more documents'
  )
