"""Corpora of codes: resuming, damage, and the command that writes them."""

import json
import os

import numpy as np
import pytest

import abstractinator
from abstractinator.cli.main import main
from abstractinator.codes import corpus
from abstractinator.codes.codes import Codes
from abstractinator.data.documents import Documents, MemoryDocument
from tests.helpers import tiny_run

TEXTS = [b'one', b'and two', b'3', b'the fourth of them', b'fin']
# Shards of at least 8 bytes: 0 and 1, 2 and 3, 4.
SPANS = [(0, 2), (2, 4), (4, 5)]
SPANS_OF_TEXTS = [(first, stop - first) for first, stop in SPANS]


class Encoder:
  """Encoder whose codes of a text are 0, 1, 2, ..., one for each byte.

  It stops, as by Ctrl-C, after a number of calls.
  """

  def __init__(self, calls=99):
    self.calls = calls
    self.texts = []

  def __call__(self, texts):
    if not self.calls:
      raise KeyboardInterrupt
    self.calls -= 1
    self.texts += texts
    return [
      Codes(np.arange(len(x), dtype=np.int32), np.array([len(x)], np.int32))
      for x in texts
    ]


def encode(directory, encoder, texts=TEXTS, about=None):
  documents = Documents(
    [MemoryDocument(str(i), text) for i, text in enumerate(texts)]
  )
  shards = corpus.encode_corpus(
    str(directory),
    documents,
    encoder,
    about=about or {'model': 'm'},
    shard_bytes=8,
    kind='npz',
  )
  return [(x['first_text'], x['num_texts']) for x in shards]


def lengths(directory):
  shards = corpus.read_corpus(str(directory))
  return [[len(x.codes_N) for x in shard] for shard in shards]


EXPECTED = [[len(x) for x in TEXTS[a:b]] for a, b in SPANS]


def test_an_encoder_that_was_stopped_resumes_with_the_next_shard(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    encode(tmp_path, Encoder(calls=1))
  with pytest.raises(ValueError, match='lists 2 texts, allowed: all 5'):
    lengths(tmp_path)
  encoder = Encoder()
  assert encode(tmp_path, encoder) == [(2, 2), (4, 1)]
  assert encoder.texts == TEXTS[2:]
  assert lengths(tmp_path) == EXPECTED
  # Nothing is left to do.
  assert encode(tmp_path, Encoder(calls=0)) == []


@pytest.mark.parametrize('when', ['encoding', 'shard', 'manifest'])
def test_an_encoder_that_was_stopped_in_the_first_shard_resumes(
  when, tmp_path, monkeypatch
):
  def stop(temporary, path):
    if (corpus.MANIFEST in path) == (when == 'manifest'):
      raise KeyboardInterrupt
    replace(temporary, path)

  replace = os.replace
  if when != 'encoding':
    monkeypatch.setattr(os, 'replace', stop)
  with pytest.raises(KeyboardInterrupt):
    encode(tmp_path, Encoder(calls=int(when != 'encoding')))
  monkeypatch.undo()
  assert encode(tmp_path, Encoder()) == SPANS_OF_TEXTS
  assert lengths(tmp_path) == EXPECTED


def test_later_shards_outlive_a_stop_in_an_earlier_one(tmp_path):
  encode(tmp_path, Encoder())
  for name in ('00000.npz', '00001.npz'):
    (tmp_path / name).unlink()
  with pytest.raises(KeyboardInterrupt):
    encode(tmp_path, Encoder(calls=1))
  assert encode(tmp_path, Encoder()) == [(2, 2)]
  assert lengths(tmp_path) == EXPECTED


@pytest.mark.parametrize('spoil', [True, False])
def test_a_shard_that_is_damaged_or_gone_is_written_anew(spoil, tmp_path):
  encode(tmp_path, Encoder())
  path = tmp_path / '00001.npz'
  if spoil:
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
  else:
    path.unlink()
  with pytest.raises(ValueError, match=r'00001\.npz: is missing or damaged'):
    lengths(tmp_path)
  assert encode(tmp_path, Encoder()) == [(2, 2)]
  assert lengths(tmp_path) == EXPECTED


def damage(directory, change):
  """Changes the manifest without its checksum."""
  path = directory / corpus.MANIFEST
  manifest = json.loads(path.read_text())
  change(manifest)
  path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
  ('change', 'written'),
  [
    (lambda manifest: manifest['data'].update(num_texts=4), []),
    (lambda manifest: manifest['data'].pop('num_bytes'), []),
    (lambda manifest: manifest['shards'].reverse(), []),
    (lambda manifest: manifest['shards'][0].update(num_codes=1), []),
    (lambda manifest: manifest['shards'][0].update(num_bytes=True), []),
    (lambda manifest: manifest['shards'][0].update(first_text=2), []),
    (lambda manifest: manifest['shards'].append(3), []),
    (lambda manifest: manifest.pop('checksum'), []),
    (lambda manifest: manifest['shards'][0].pop('file'), [(0, 2)]),
    (lambda manifest: manifest['shards'][1].pop('crc32'), [(2, 2)]),
    (lambda manifest: manifest['shards'][2].update(crc32=[]), [(4, 1)]),
    (lambda manifest: manifest['shards'][0].update(file='../0'), [(0, 2)]),
    (lambda manifest: manifest.update(shards=None), SPANS_OF_TEXTS),
  ],
)
def test_a_damaged_manifest_is_refused_and_mended(change, written, tmp_path):
  encode(tmp_path, Encoder())
  sound = (tmp_path / corpus.MANIFEST).read_text()
  damage(tmp_path, change)
  with pytest.raises(
    ValueError, match=r'(is damaged|has no checksum), allowed.*mends it'
  ):
    lengths(tmp_path)
  # Whole shards are kept.
  assert encode(tmp_path, Encoder()) == written
  assert (tmp_path / corpus.MANIFEST).read_text() == sound
  assert lengths(tmp_path) == EXPECTED


@pytest.mark.parametrize('text', ['', '[1]', '{"data', '[' * 2000, '\xff'])
def test_what_is_no_manifest_is_refused(text, tmp_path):
  encode(tmp_path, Encoder())
  (tmp_path / corpus.MANIFEST).write_text(text, encoding='latin-1')
  for use in (lengths, lambda path: encode(path, Encoder())):
    with pytest.raises(ValueError, match='is no manifest, allowed') as info:
      use(tmp_path)
    assert '\n' not in str(info.value)


def test_a_manifest_is_mended_for_its_own_corpus_and_run_alone(tmp_path):
  encode(tmp_path, Encoder())
  damage(tmp_path, lambda manifest: manifest['data'].update(sha256='0'))
  with pytest.raises(
    ValueError, match=r'data is .*, allowed: .* nothing there'
  ):
    encode(tmp_path, Encoder())
  damage(tmp_path, lambda manifest: manifest.update(model='n'))
  with pytest.raises(ValueError, match='model is n, allowed: m'):
    encode(tmp_path, Encoder())


def test_a_link_under_the_name_of_a_temporary_file_is_not_followed(tmp_path):
  encode(tmp_path, Encoder())
  sound = (tmp_path / corpus.MANIFEST).read_text()
  (tmp_path / 'manifest.json.tmp').symlink_to(tmp_path / 'kept')
  (tmp_path / 'kept').write_text('kept')
  damage(tmp_path, lambda manifest: manifest['data'].update(num_texts=4))
  encode(tmp_path, Encoder())
  assert (tmp_path / corpus.MANIFEST).read_text() == sound
  assert (tmp_path / 'kept').read_text() == 'kept'


def test_another_corpus_or_run_is_refused(tmp_path):
  encode(tmp_path, Encoder())
  with pytest.raises(ValueError, match=r'data is .* allowed'):
    encode(tmp_path, Encoder(), texts=TEXTS[:-1])
  with pytest.raises(ValueError, match='model is m, allowed: n'):
    encode(tmp_path, Encoder(), about={'model': 'n'})
  (tmp_path / corpus.MANIFEST).unlink()
  with pytest.raises(ValueError, match=r'has files but no manifest\.json'):
    encode(tmp_path, Encoder())


def test_the_command_writes_the_codes_of_a_run(tmp_path, capsys):
  workdir, out = str(tmp_path / 'run'), str(tmp_path / 'codes')
  tiny_run.save(workdir, tiny_run.config())
  for number, text in enumerate(TEXTS):
    (tmp_path / f'{number}.txt').write_bytes(text)
  args = ['encode', workdir, f'--data={tmp_path}/*.txt', f'--out={out}']
  assert main([*args, '--shard_bytes=8', '--json']) == 0
  shards = list(map(json.loads, capsys.readouterr().out.splitlines()))
  assert [x['file'] for x in shards] == [f'0000{i}.parquet' for i in range(3)]
  codes = [x for shard in corpus.read_corpus(out) for x in shard]
  expected = abstractinator.load(workdir).encode_all(TEXTS)
  for a, b in zip(codes, expected, strict=True):
    np.testing.assert_array_equal(a.codes_N, b.codes_N)
    np.testing.assert_array_equal(a.count_B, b.count_B)
  # A second call has nothing to do; one with other weights is refused.
  assert main([*args, '--shard_bytes=8']) == 0
  assert capsys.readouterr().out == ''
  tiny_run.save(workdir, tiny_run.config(), steps=(4,))
  assert main([*args, '--shard_bytes=8']) == 2
  assert 'model is' in capsys.readouterr().err
  assert main(args[:-1]) == 2
  assert '--out: got none' in capsys.readouterr().err
