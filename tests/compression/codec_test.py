import dataclasses
import io
import lzma
import os
import sys

import jax
import numpy as np
import pytest

from abstractinator.cli.main import main
from abstractinator.compression import container
from abstractinator.compression.byte_model import ByteModel
from abstractinator.compression.codec import compress, decompress
from abstractinator.compression.coder import (
  PRECISION_BITS,
  RangeCoder,
  count_frequencies,
  logit_frequencies,
)
from abstractinator.runs.state import variables_of
from tests.helpers import tiny_run, tiny_texts
from tests.helpers.jitted import jit


def louder(state):
  """Returns parameters whose predictions have an entropy of a few bits."""

  def leaf(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return x * 3 if name.endswith('entropy_model/head/kernel') else x

  return jax.tree_util.tree_map_with_path(leaf, state)


def make_model(window=32, seed=3):
  config = tiny_run.config()
  (level,) = config.model.levels
  level = dataclasses.replace(
    level, entropy_model=dataclasses.replace(level.entropy_model, window=window)
  )
  config = dataclasses.replace(
    config, model=dataclasses.replace(config.model, levels=(level,))
  )
  return ByteModel(
    config, variables_of(louder(tiny_run.random_state(config, seed)))
  )


@pytest.fixture(scope='module')
def model():
  return make_model()


def sample(model, num_lanes, steps):
  """Returns a text drawn from the model, and its bits under the model."""
  rng = np.random.default_rng(0)
  lanes_BT = np.zeros((num_lanes, steps), np.uint8)
  cache, bits = model.start(num_lanes), 0.0
  last_B = np.zeros(num_lanes, np.int32)
  for step in range(steps):
    table, cache = model.step(last_B, cache)
    sums_BV = np.cumsum(table, axis=1)
    drawn_B1 = rng.integers(0, 2**PRECISION_BITS, (num_lanes, 1))
    last_B = np.sum(sums_BV <= drawn_B1, axis=1).astype(np.int32)
    lanes_BT[:, step] = last_B
    chosen = np.take_along_axis(np.asarray(table), last_B[:, None], axis=1)
    bits -= np.log2(chosen / 2**PRECISION_BITS).sum()
  return lanes_BT.tobytes(), bits


def test_files_take_the_bits_that_the_model_predicts(model):
  """Within 0.5%, header and checksums included."""
  data, bits = sample(model, num_lanes=64, steps=300)
  content = compress(model, data, num_lanes=64)
  assert decompress(model, content) == data
  assert bits / 8 <= len(content) <= 1.005 * bits / 8 + 64
  assert len(content) < 0.9 * len(data)


TEXTS = tiny_texts.of_any_bytes(num_random=5000)
TEXTS |= {'fewer than lanes': b'abcdefghi'}


@pytest.mark.parametrize('name', TEXTS)
def test_any_bytes_come_back(model, name):
  data = TEXTS[name]
  content = compress(model, data, num_lanes=64)
  assert decompress(model, content) == data
  # Blocks that do not shrink are stored raw.
  assert len(content) <= len(data) + 120


def test_raw_blocks_are_context_of_coded_ones(model):
  data, _ = sample(model, num_lanes=64, steps=120)
  lanes = np.frombuffer(data, np.uint8).reshape(64, 120).copy()
  lanes[:, 40:80] = np.random.default_rng(2).integers(0, 256, (64, 40))
  data = lanes.tobytes()
  content = compress(model, data, num_lanes=64, block_bytes=64 * 40)
  _, blocks = container.unpack(content)
  assert [block.kind for block in blocks] == [1, 0, 1]
  assert decompress(model, content) == data


@pytest.mark.nightly
def test_a_megabyte_of_text(model):
  words = [f'word{i} '.encode() for i in range(1000)]
  chosen = np.random.default_rng(0).integers(0, 1000, 140_000)
  data = b''.join(words[i] for i in chosen)
  assert len(data) > 1_000_000
  content = compress(model, data, num_lanes=4096)
  assert decompress(model, content) == data
  assert len(content) <= len(data) + 13 * 20 + 120


def test_a_model_without_window_starts_anew_after_a_row():
  """Its cache has room for the ids of one row."""
  model = make_model(window=None)
  assert model.reset_interval == 32
  data = bytes(range(97, 123)) * 5
  content = compress(model, data, num_lanes=1)
  assert decompress(model, content) == data


def test_frequencies_of_logits_add_up():
  logits = np.random.default_rng(0).normal(size=(20, 256)) * 10
  logits[0] = 0
  logits[1, 7] = 1e4
  got = np.asarray(jit(logit_frequencies)(logits.astype(np.float32)))
  assert got.dtype == np.int32
  assert got.min() == 1
  assert (got.sum(axis=1) == 2**PRECISION_BITS).all()
  assert got[1, 7] == 2**PRECISION_BITS - 255
  p = np.exp(logits - logits.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  np.testing.assert_allclose(got / 2**PRECISION_BITS, p, atol=3e-4)


def test_frequencies_of_counts_add_up():
  counts = np.array([0, 5, 1000, 0, 3])
  got = count_frequencies(counts)
  assert got.sum() == 2**PRECISION_BITS
  p = (counts + 0.5) / (counts.sum() + 2.5)
  np.testing.assert_allclose(got / 2**PRECISION_BITS, p, atol=1e-5)


@pytest.mark.parametrize('is_shared', [False, True])
def test_symbols_and_the_head_come_back(is_shared):
  rng = np.random.default_rng(0)
  table = logit_frequencies(rng.normal(size=(100, 7)).astype(np.float32))
  table = np.asarray(table)[0] if is_shared else np.asarray(table)
  symbols_N = rng.integers(0, 7, 100).astype(np.int32)
  encoder = RangeCoder()
  encoder.head([3, 2**32 - 1])
  encoder.code(table, symbols_N)
  encoder.code(np.array([2**PRECISION_BITS]), np.zeros(5, np.int32))
  decoder = RangeCoder(encoder.finish())
  assert decoder.head([0, 0]) == [3, 2**32 - 1]
  got_N = decoder.code(table, np.zeros(100, np.int32))
  assert got_N.tolist() == symbols_N.tolist()
  got_N = decoder.code(np.array([2**PRECISION_BITS]), np.ones(5, np.int32))
  assert got_N.tolist() == [0] * 5


def test_damage_is_found_everywhere(model):
  data, _ = sample(model, num_lanes=64, steps=20)
  content = compress(model, data, num_lanes=64)
  rng = np.random.default_rng(0)
  for at in [*range(60), *rng.integers(60, len(content), 20)]:
    damaged = bytearray(content)
    damaged[at] ^= 1 << rng.integers(8)
    with pytest.raises(ValueError, match=r'damaged|begins with|version|cut'):
      decompress(model, bytes(damaged))
  for size in (0, 3, 30, 60, len(content) - 1):
    with pytest.raises(ValueError, match=r'cut short or damaged|begins with'):
      decompress(model, content[:size])
  with pytest.raises(ValueError, match='cut short or damaged'):
    decompress(model, content + b'x')


def test_another_model_and_other_floats_are_refused(model):
  data, _ = sample(model, num_lanes=64, steps=20)
  content = compress(model, data, num_lanes=64)
  other = make_model(seed=4)
  assert other.fingerprint != model.fingerprint
  with pytest.raises(ValueError, match='allowed: the checkpoint that wrote it'):
    decompress(other, content)
  other.fingerprint = model.fingerprint
  with pytest.raises(ValueError, match='damaged, or written by other code'):
    decompress(other, content)
  header, blocks = container.unpack(content)
  # The bytes that come out have a checksum, whatever they come from.
  other_bytes = dataclasses.replace(blocks[0], crc=blocks[0].crc ^ 1)
  with pytest.raises(ValueError, match='the checksum of the bytes differs'):
    decompress(model, container.pack(header, [other_bytes, *blocks[1:]]))
  header = dataclasses.replace(header, platform='jax 0.1 on another machine')
  message = 'floats differ between jax 0.1 on another machine, where it was'
  with pytest.raises(ValueError, match=message):
    decompress(other, container.pack(header, blocks))


def test_lanes_are_bounded_by_bytes_and_memory(model):
  """A file may not ask for caches without end."""
  content = compress(model, b'abc', num_lanes=64)
  header, _ = container.unpack(content)
  assert header.num_lanes == 3
  assert decompress(model, content) == b'abc'
  small = make_model()
  small.max_lanes = 2
  with pytest.raises(ValueError, match='got 3 lanes, allowed: at most 2'):
    decompress(small, content)
  large = make_model(window=1 << 20)
  lane = jax.eval_shape(lambda: large.start(1))
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(lane))
  assert large.max_lanes == (1 << 29) // size < model.max_lanes <= 65535


def test_commands(tmp_path, monkeypatch, capsys):
  tiny_run.save(tmp_path / 'run', tiny_run.config())
  tiny_run.save(tmp_path / 'other', tiny_run.config(), steps=(4,))
  text, small, back = (str(tmp_path / x) for x in ('text', 'small', 'back'))
  data = lzma.compress(b'anything') + b'a' * 50
  with open(text, 'wb') as file:
    file.write(data)
  run, other = str(tmp_path / 'run'), str(tmp_path / 'other')

  def give(content):
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(content)))

  give(data)
  assert main(['compress', run, '-', small, '--lanes=1']) == 0
  assert main(['decompress', other, small, back]) == 2
  assert 'allowed: the checkpoint that wrote it' in capsys.readouterr().err
  assert not (tmp_path / 'back').exists()
  assert main(['decompress', run, small, back]) == 0
  assert capsys.readouterr().out == (
    f'{len(data)} bytes restored from {os.path.getsize(small)}\n'
  )
  assert (tmp_path / 'back').read_bytes() == data
  (tmp_path / 'back').write_bytes(b'')
  give((tmp_path / 'small').read_bytes())
  assert main(['decompress', run, '-', back, '--force']) == 0
  assert (tmp_path / 'back').read_bytes() == data
  assert main(['compress', run, text, back]) == 2
  assert 'exists, allowed' in capsys.readouterr().err
