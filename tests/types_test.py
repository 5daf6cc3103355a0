import numpy as np
import pytest

from abstractinator import types
from abstractinator.types import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE


@pytest.mark.parametrize('value', range(256))
def test_every_byte_round_trips(value):
  document = bytes([value])
  ids = types.bytes_to_ids(document)
  np.testing.assert_array_equal(ids, [value, EOS_ID])
  assert ids.dtype == np.int32
  assert types.ids_to_bytes(ids) == document
  assert types.ids_to_bytes(types.bytes_to_ids(document, add_eos=False)) == (
    document
  )


def test_bytes_round_trip_in_order():
  document = bytes(range(256)) + bytes(range(255, -1, -1)) + b'\x00\x00'
  assert types.ids_to_bytes(types.bytes_to_ids(document)) == document
  assert types.ids_to_bytes(types.bytes_to_ids(b'')) == b''
  assert types.bytes_to_ids(b'', add_eos=False).shape == (0,)


def test_specials_lie_outside_the_bytes():
  specials = [BOS_ID, EOS_ID, PAD_ID]
  assert len(set(specials)) == 3
  assert min(specials) >= 256
  assert max(specials) == VOCAB_SIZE - 1


def test_decoding_stops_at_eos_and_leaves_specials_out():
  ids = [BOS_ID, 72, PAD_ID, 105, EOS_ID, 33, EOS_ID]
  assert types.ids_to_bytes(np.array(ids)) == b'Hi'
  assert types.ids_to_bytes(np.array(ids[:4])) == b'Hi'


@pytest.mark.parametrize('bad', [-1, VOCAB_SIZE])
def test_decoding_refuses_ids_outside_the_vocabulary(bad):
  with pytest.raises(ValueError, match=rf'0\.\.258.*{bad}'):
    types.ids_to_bytes(np.array([65, bad]))


@pytest.mark.parametrize('bad', ['text', np.arange(3, dtype=np.int32), [1, 2]])
def test_encoding_refuses_what_is_no_bytes(bad):
  with pytest.raises(TypeError, match=r'document: got \w+, allowed: bytes'):
    types.bytes_to_ids(bad)
