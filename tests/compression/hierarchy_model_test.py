import dataclasses
import json
import zlib

import jax
import numpy as np
import pytest

from abstractinator.cli.main import main
from abstractinator.compression import container
from abstractinator.compression.byte_model import ByteModel
from abstractinator.compression.codec import compress, decompress
from abstractinator.compression.coder import PRECISION_BITS, RangeCoder
from abstractinator.compression.container import CODED, RAW, FileBlock
from abstractinator.compression.hierarchy_model import (
  HierarchyBlockCoder,
  HierarchyModel,
)
from abstractinator.config import RunConfig
from abstractinator.evaluation.unigram import CodeCounts
from abstractinator.objective import losses
from abstractinator.ops.segmentation_rules import RULES
from abstractinator.types import Batch
from tests.helpers import tiny_dictionary, tiny_run, tiny_texts
from tests.helpers.jitted import jit
from tests.helpers.tiny_hierarchy import (
  BASE,
  ROW,
  config_of,
  edited,
  make,
  pyramid_config,
  stream_config,
)


@pytest.fixture(scope='module')
def model():
  return make(tiny_run.config())[0]


@pytest.fixture(scope='module')
def streaming_model():
  return make(stream_config(), widths=(2, 8))[0]


@pytest.fixture
def always_coded(monkeypatch):
  """Codes every block: untrained models make texts longer."""
  monkeypatch.setattr(
    container,
    'block',
    lambda raw, x: FileBlock(CODED, x, zlib.crc32(raw)),
  )


def write_block(model, data, encoder=None):
  encoder = encoder or RangeCoder()
  HierarchyBlockCoder(model).code(np.frombuffer(data, np.uint8), encoder)
  return encoder.finish()


def read_block(model, payload, size):
  bytes_N = np.zeros(size, np.uint8)
  decoder = RangeCoder(payload)
  return HierarchyBlockCoder(model).code(bytes_N, decoder).tobytes()


def letters(size=ROW):
  return bytes(np.random.default_rng(0).integers(97, 123, size).astype('u1'))


TEXTS = tiny_texts.of_any_bytes(num_random=1500)


@pytest.mark.parametrize('name', TEXTS)
@pytest.mark.parametrize('which', ['model', 'streaming_model'])
@pytest.mark.usefixtures('always_coded')
def test_any_bytes_come_back(request, which, name):
  model = request.getfixturevalue(which)
  content = compress(model, TEXTS[name])
  assert decompress(model, content) == TEXTS[name]


def test_blocks_that_do_not_shrink_are_stored_raw(model):
  data = TEXTS['random']
  content = compress(model, data)
  assert data in content
  assert decompress(model, content) == data


def test_codes_of_raw_blocks_are_not_counted(model, monkeypatch):
  kinds = iter([CODED, RAW, CODED])

  def block(raw, payload):
    kind = next(kinds)
    stored = payload if kind == CODED else raw
    return FileBlock(kind, stored, zlib.crc32(raw))

  monkeypatch.setattr(container, 'block', block)
  data = b'some words, and others ' * 40
  content = compress(model, data, block_bytes=400)
  assert [b.kind for b in container.unpack(content)[1]] == [CODED, RAW, CODED]
  assert decompress(model, content) == data


CONFIGS = {
  'window': lambda: config_of('window', lookback=2, queries=2),
  'two levels of two digits, a top LM': pyramid_config,
  'segment': lambda: config_of(lookback=2),
  'full': lambda: config_of('full', lookback=1),
  'a base': lambda: edited(config_of('window', lookback=1), BASE),
  'a stream': stream_config,
  'a stream of two digits, segments alone': lambda: stream_config(
    {
      'encoder_context': 'segment',
      'expander.context': 'segment',
      'quantizer.kind': 'rvq',
      'quantizer.codebook_size': 4,
      'quantizer.depth': 2,
    }
  ),
  'a stream, ends by a head': lambda: stream_config(
    {'expander.base': 'none', 'expander.ends': 'head'},
    top={'inputs': 'codes', 'base': 'none'},
  ),
  'a stream over two levels': lambda: stream_config(
    {'expander.conditioning': 'none'},
    {'expander.conditioning': 'top_lm'},
  ),
  'a dictionary': lambda: edited(
    config_of('window', lookback=1), tiny_dictionary.LEVEL
  ),
  'a stream of a dictionary': lambda: stream_config(tiny_dictionary.LEVEL),
}
NIGHTLY = (
  # Two levels come back below, and codes of a top LM are coded in streams too.
  'two levels of two digits, a top LM',
  'segment',
  'full',
  'a base',
  # `a stream of a dictionary` has all of it, and its codes are coded alike.
  'a stream',
  'a stream of two digits, segments alone',
  'a stream, ends by a head',
  'a stream over two levels',
  'a dictionary',
)


class BitCounter(RangeCoder):
  """Encoder that adds up the bits that its frequencies stand for.

  `rule_bits` are those of ends that the rule predicts.
  """

  bits = rule_bits = 0.0

  def code(self, frequencies, symbols_N):
    table_NV = np.broadcast_to(
      frequencies, (len(symbols_N), frequencies.shape[-1])
    )
    chosen_N = np.take_along_axis(table_NV, symbols_N[:, None], axis=1)
    bits_N = -np.log2(chosen_N[:, 0] / 2**PRECISION_BITS)
    self.bits += bits_N.sum()
    # A surprise of the rule takes 12 bits.
    is_rule_N = np.min(table_NV, axis=1) == 2 ** (PRECISION_BITS - 12)
    self.rule_bits += bits_N[is_rule_N & (table_NV.shape[1] == 2)].sum()
    return super().code(frequencies, symbols_N)


def bits_of(model, variables, ids_N):
  """Returns the bits of a row, all ids predicted in one call of the pyramid."""
  ids_BS = ids_N[None]
  zeros_BS = np.zeros_like(ids_BS)
  output = jit(model._model.apply)(
    variables, Batch(ids_BS, zeros_BS, zeros_BS[:, 0])
  )
  nats = 0.0
  for number, (level, batch) in enumerate(
    zip(output.levels, output.batches, strict=True)
  ):
    is_id_BS = np.asarray(batch.document_BS) >= 0
    nats_BS = np.asarray(level.expanded.nats_BS)
    if number == 0:
      # A file has bytes only: special ids have no probability in it.
      logits_BSV = level.expanded.logits[0]
      nats_BS += jax.nn.logsumexp(logits_BSV[..., :256], axis=-1)
      nats_BS -= jax.nn.logsumexp(logits_BSV, axis=-1)
    nats += nats_BS[is_id_BS].sum()
    if level.expanded.end_logits_BS is None:
      continue
    end_BS = np.asarray(level.compressed.segments.is_end_BS)
    sign_BS = np.where(end_BS, -1, 1)
    end_nats_BS = jax.nn.softplus(sign_BS * level.expanded.end_logits_BS)
    nats += np.asarray(end_nats_BS)[
      is_id_BS & ~np.asarray(level.expanded.end_is_certain_BS)
    ].sum()
  codes = output.top_codes
  if output.top_lm is not None:
    nats_BU = losses.code_nats(output.top_lm, codes.codes_BP)
    nats += np.asarray(nats_BU)[np.asarray(codes.document_BP) >= 0].sum()
    return nats / np.log(2)
  counts = CodeCounts(model._model.config.levels[-1].quantizer.stage_sizes)
  counts.add(np.asarray(codes.codes_BP)[np.asarray(codes.document_BP) >= 0])
  return nats / np.log(2) + counts.bits()


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.nightly] * (name in NIGHTLY))
    for name in CONFIGS
  ],
)
def test_files_take_the_bits_that_the_pyramid_predicts(name):
  # Each code is counted before the next, as `CodeCounts.bits` does.
  model, variables = make(CONFIGS[name](), max_table_codes=1)
  data, counter = letters(), BitCounter()
  if 'dictionary' in name:
    data = tiny_dictionary.text(ROW)[:ROW]
  payload = write_block(model, data, counter)
  assert read_block(model, payload, ROW) == data
  bits = bits_of(model, variables, np.frombuffer(data, 'u1').astype(np.int32))
  written = 8 * len(payload) - 32 * (1 + len(model.levels))
  # The rule knows all ends, but not where the row ends.
  assert counter.rule_bits < 12.5
  bits += counter.rule_bits
  assert abs(counter.bits - bits) < 5e-4 * bits
  # The coder ends with up to two words more.
  assert bits - 2 <= written <= bits + 66
  longer = 3 * data
  payload = write_block(model, longer)
  assert read_block(model, payload, len(longer)) == longer


def test_chosen_codes_take_fewer_bits_and_any_decoder_reads_them(
  streaming_model,
):
  choosing, _ = make(stream_config(), candidates=8, widths=(2, 8))
  data = letters()
  (nearest, chosen) = (x.encode(data)[1] for x in (streaming_model, choosing))
  assert nearest.shape == chosen.shape
  assert np.any(nearest != chosen)
  of_nearest, of_chosen = BitCounter(), BitCounter()
  write_block(streaming_model, data, of_nearest)
  payload = write_block(choosing, data, of_chosen)
  assert of_chosen.bits < of_nearest.bits
  assert read_block(streaming_model, payload, ROW) == data


def test_more_codes_between_levels_than_bytes_come_back():
  values = json.loads(json.dumps(pyramid_config().to_dict()))
  values['model']['top_lm'] = None
  values['model']['levels'][0]['pooling']['num_queries'] = 4
  # The top codes have one value only.
  values['model']['levels'][1]['quantizer'] |= {
    'kind': 'vq',
    'codebook_size': 1,
  }
  model, _ = make(RunConfig.from_dict(values))
  data = letters()
  (_, (ids_N, _)), _ = model.encode(data)
  assert len(ids_N) > len(data)
  assert read_block(model, write_block(model, data), len(data)) == data


def test_more_lanes_than_the_widest_step_come_back():
  """Segments of both levels, and top codes, are coded group after group."""
  values = json.loads(json.dumps(pyramid_config().to_dict()))
  values['model']['top_lm']['stack']['window'] = 4
  for level in values['model']['levels']:
    # Segments attend to codes of segments of the group before.
    level['expander']['lookback'] = 2
  model, _ = make(RunConfig.from_dict(values), widths=(2, 8), lane_windows=1)
  data = letters()
  segments, codes_N = model.encode(data)
  for level, (_, length_P) in zip(model.levels, segments, strict=True):
    assert level.lane_segments(length_P) == 1
    assert len(length_P) > 2 * 8
  assert len(codes_N) / 4 > 2 * 8
  encoder = RangeCoder()
  counts = model.new_counts()
  assert model.code_top(codes_N, counts, encoder).tolist() == codes_N.tolist()
  decoder, zeros_N = RangeCoder(encoder.finish()), np.zeros_like(codes_N)
  assert model.code_top(zeros_N, counts, decoder).tolist() == codes_N.tolist()
  assert read_block(model, write_block(model, data), len(data)) == data


@pytest.mark.usefixtures('always_coded')
def test_damaged_streams_are_refused(streaming_model):
  header, (block,) = container.unpack(
    compress(streaming_model, letters(ROW + 20))
  )
  payload, (num_codes, first) = (
    block.payload,
    np.frombuffer(block.payload[:8], '<u4'),
  )
  for broken, message in (
    ((num_codes + 1).tobytes() + payload[4:], 'got rows of'),
    (payload[:4] + (first - 1).tobytes() + payload[8:], 'got rows of'),
    (payload[:40] + bytes([payload[40] ^ 1]) + payload[41:], ''),
    (payload[:60], 'end before the symbols do'),
  ):
    damaged = dataclasses.replace(block, payload=broken)
    with pytest.raises(ValueError, match=f'something else, .*{message}.*'):
      decompress(streaming_model, container.pack(header, [damaged]))


def test_other_payloads_are_refused(model):
  payload = write_block(model, b'some words')
  many = (2**31).to_bytes(4, 'little')
  for broken, message in (
    (payload[:5], 'got 5 bytes'),
    (many + payload[4:], 'got 2147483648 codes'),
    (payload[:4] + many + payload[8:], 'got lanes of 2147483648'),
  ):
    with pytest.raises(ValueError, match=message):
      read_block(model, broken, 10)


@pytest.mark.parametrize(
  'context', ['window', pytest.param('segment', marks=pytest.mark.nightly)]
)
@pytest.mark.usefixtures('always_coded')
def test_ends_by_entropy_come_back_and_take_no_bits(context, monkeypatch):
  """Rows of a block are lanes; the rule says nearly all of their ends."""
  config = config_of(context, lookback=1, ends='entropy')
  model, _ = make(config, widths=(2, 8))
  (level,) = model.levels
  data = letters(3 * ROW + 5)
  encoder = EndCounter()
  payload = write_block(model, data, encoder)
  assert read_block(model, payload, len(data)) == data
  (_, length_P), *_ = model.encode(data)[0]
  numbers = level.lane_numbers(length_P)
  assert len(numbers) == level.num_lane_numbers(len(data)) == 4
  assert sum(numbers) == len(length_P) > 20
  assert encoder.num_ends > 300
  # The rule does not know where a row ends.
  assert encoder.num_surprises <= 4
  for wrong in ([0, *numbers[1:]], [*numbers[:-1], numbers[-1] + 1]):
    with pytest.raises(ValueError, match='got rows of'):
      level.first_segments(wrong, len(length_P))
  content = compress(model, data)
  assert decompress(model, content) == data
  # The fingerprint does not cover the code of a rule, and checksums do.
  rule = RULES['entropy_delta']
  monkeypatch.setitem(RULES, 'entropy_delta', rule._replace(wish=later(rule)))
  # Other widths are traced anew.
  other, _ = make(config, widths=(4, 8))
  assert other.fingerprint == model.fingerprint
  with pytest.raises(ValueError, match='decodes to something else, '):
    decompress(other, content)


def later(rule):
  """Returns a rule's wishes at a higher threshold."""
  return lambda known, policy: rule.wish(
    known, policy.replace(threshold=policy.threshold + 0.5)
  )


class EndCounter(RangeCoder):
  """Encoder that counts ends of segments, and those that were unlikely."""

  num_ends = num_surprises = 0

  def code(self, frequencies, symbols_N):
    if frequencies.shape[-1] == 2:
      chosen_N = frequencies[np.arange(len(symbols_N)), symbols_N]
      self.num_ends += len(symbols_N)
      self.num_surprises += int((chosen_N < 2**19).sum())
    return super().code(frequencies, symbols_N)


def test_files_say_which_model_wrote_them(model):
  config = tiny_run.config()
  bytes_model = ByteModel(config, make(config)[1])
  small = compress(bytes_model, b'text')
  assert small[4] == 1
  assert compress(model, b'text')[4] == 2
  with pytest.raises(ValueError, match='got a file of model entropy_model'):
    decompress(model, small)
  with pytest.raises(ValueError, match='got a file of model hierarchy'):
    decompress(bytes_model, compress(model, b'text'))
  with pytest.raises(ValueError, match='num_lanes: got 2, allowed: 1 to 1'):
    compress(model, b'text', num_lanes=2)


@pytest.mark.usefixtures('always_coded')
def test_another_checkpoint_is_refused(model):
  content = compress(model, b'some text')
  other, _ = make(tiny_run.config(), seed=4)
  with pytest.raises(ValueError, match='allowed: the checkpoint that wrote it'):
    decompress(other, content)
  other.fingerprint = model.fingerprint
  with pytest.raises(ValueError, match='decodes to something else, '):
    decompress(other, content)


def test_unsupported_runs_are_refused():
  variables = {'params': {}}
  config = stream_config(top={'mode': 'continuous'})
  with pytest.raises(ValueError, match=r"top_lm\.mode: got 'continuous'"):
    HierarchyModel(config, variables)
  config = dataclasses.replace(tiny_run.config(), objective='entropy_model')
  with pytest.raises(ValueError, match="objective: got 'entropy_model'"):
    HierarchyModel(config, variables)


def test_commands(tmp_path, capsys):
  tiny_run.save(tmp_path / 'run', tiny_run.config())
  run, text, small, back = (
    str(tmp_path / x) for x in ('run', 'text', 'small', 'back')
  )
  with open(text, 'wb') as file:
    file.write(b'a' * 500)
  how = ['--model', 'hierarchy']
  assert main(['compress', run, text, small, *how, '--lanes=2']) == 2
  assert 'allowed: with --model entropy_model only' in capsys.readouterr().err
  assert main(['compress', run, text, small, '--candidates=2']) == 2
  assert 'allowed: with --model hierarchy only' in capsys.readouterr().err
  assert main(['compress', run, text, small, *how]) == 0
  assert main(['decompress', run, small, back]) == 0
  assert (tmp_path / 'back').read_bytes() == b'a' * 500
