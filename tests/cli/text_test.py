"""Commands that read a text or a prompt: segment, reconstruct, generate."""

import io
import json
import re
import sys

import numpy as np
import pytest

from abstractinator.cli import generate
from abstractinator.cli.common import show
from abstractinator.cli.main import main
from tests.helpers.tiny_run import TEXT, WAITS


def test_segment_prints_the_text_divided(workdir, pyramid, file, capsys):
  segments = list(map(show, pyramid.segment(TEXT)))
  assert main(['segment', workdir, file]) == 0
  assert capsys.readouterr() == (
    '|'.join(segments) + '\n',
    WAITS.replace('RUN', workdir),
  )
  assert main(['segment', workdir, file, '--separator=<>']) == 0
  assert capsys.readouterr().out == '<>'.join(segments) + '\n'


def test_segment_as_json(workdir, pyramid, tmp_path, capsys):
  data = bytes(range(256)) + np.random.default_rng(0).bytes(300)
  path = tmp_path / 'any'
  path.write_bytes(data)
  assert main(['segment', workdir, str(path), '--json']) == 0
  segments = list(map(show, pyramid.segment(data)))
  assert json.loads(capsys.readouterr().out) == segments
  assert '\\xff' in ''.join(segments)


def test_reconstruct_prints_text_and_accuracy(workdir, pyramid, file, capsys):
  result = pyramid.reconstruct(TEXT)
  assert main(['reconstruct', workdir, file]) == 0
  out = capsys.readouterr().out
  assert out.startswith(show(result.text) + '\n')
  # The codes of this run have 6 bits, one for each segment.
  assert result.num_codes == len(pyramid.encode(TEXT).codes_N)
  rate = 6 * result.num_codes / len(TEXT)
  *figures, last = out.splitlines()[-5:]
  lines = dict(re.split('  +', line, maxsplit=1) for line in figures)
  assert last.startswith('codes are lossy: ')
  assert lines['bytes right, from codes alone'] == f'{result.byte_accuracy:.2%}'
  assert lines['segments'] == (
    f'{result.num_segments} of {len(TEXT)} bytes,'
    f' {result.bytes_per_segment:.2f} bytes/segment'
  )
  assert lines['codes'] == (
    f'{result.num_codes} of 6 bits, at most {rate:.3f} bits/byte'
  )
  assert main(['reconstruct', workdir, file, '--json']) == 0
  assert json.loads(capsys.readouterr().out) == {
    'text': show(result.text),
    'byte_accuracy': result.byte_accuracy,
    'teacher_forced_byte_accuracy': result.teacher_forced_byte_accuracy,
    'num_bytes': len(TEXT),
    'num_segments': result.num_segments,
    'bytes_per_segment': result.bytes_per_segment,
    'num_codes': result.num_codes,
    'code_capacity_bits_per_byte': pytest.approx(rate),
    'exact': result.exact,
  }


def test_generate_prints_what_python_returns(workdir, pyramid, capsys):
  options = ['--max_bytes=20', '--temperature=0.9', '--seed=5']
  kwargs = {'max_new_bytes': 20, 'temperature': 0.9, 'seed': 5}
  ((text,),) = pyramid.generate(b'ab', **kwargs)
  assert main(['generate', workdir, '--prompt=ab', *options]) == 0
  assert capsys.readouterr().out == 'ab' + show(text) + '\n'
  args = ['generate', workdir, '--prompt=ab', '--prompt=c\udcff', *options]
  assert main([*args, '--num_samples=2', '--json']) == 0
  samples = pyramid.generate([b'ab', b'c\xff'], **kwargs, num_samples=2)
  assert json.loads(capsys.readouterr().out) == [
    {'prompt': prompt, 'texts': list(map(show, texts))}
    for prompt, texts in zip(['ab', 'c\\xff'], samples, strict=True)
  ]
  assert samples[0][0] == text


def test_prompts_from_standard_input(workdir, monkeypatch, capsys):
  data = io.BytesIO(b'ab')
  monkeypatch.setattr(sys, 'stdin', type('', (), {'buffer': data}))
  args = ['--max_bytes=20', '--temperature=0.9', '--seed=5']
  assert main(['generate', workdir, '--prompt_file=-', *args]) == 0
  from_stdin = capsys.readouterr().out
  assert from_stdin.startswith('ab')
  assert main(['generate', workdir, '--prompt=ab', *args]) == 0
  assert capsys.readouterr().out == from_stdin


def test_a_character_may_begin_in_the_prompt():
  class Pyramid:
    def stream(self, prompt):
      assert prompt == b'a\xc3'
      yield from (b'\xbcb', b'\xe2\x82', b'\xac', b'\xff\xe2')

  shown = list(generate._stream(Pyramid(), b'a\xc3', {}))
  assert ''.join(shown) == 'aüb€\\xff\\xe2\n'


def test_texts_together_are_as_each_alone(pyramid):
  texts = [TEXT, TEXT * 3, b'x']
  codes = pyramid.encode_all(texts)
  for text, of_text in zip(texts, codes, strict=True):
    alone = pyramid.encode(text)
    assert of_text.codes_N.tolist() == alone.codes_N.tolist()
    assert of_text.count_B.tolist() == alone.count_B.tolist()
  decoded = pyramid.decode_all(codes)
  assert decoded == [pyramid.decode(x) for x in codes]
  together = pyramid.reconstruct_all(texts)
  assert together == [pyramid.reconstruct(text) for text in texts]
  assert [x.text for x in together] == decoded


def test_generation_without_a_top_lm_says_that_it_repeats(workdir, capsys):
  args = ['generate', workdir, '--prompt=ab', '--max_bytes=4']
  line = 'no top LM, so the last code of the prompt repeats; train a config'
  assert main(args) == 0
  assert line in capsys.readouterr().err
  assert main([*args, '--entropy_model_only']) == 0
  assert line not in capsys.readouterr().err
