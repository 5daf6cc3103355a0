import pytest

from abstractinator.decoding.growing_text import GrowingText
from abstractinator.decoding.options import Options


def parts_of(data, size):
  return [data[i : i + size] for i in range(0, len(data), size)]


def grow(data, size, limit=99, stop=(), **kwargs):
  """Returns what is taken after each part, and the whole text."""
  text, taken = GrowingText(limit, stop), []
  parts = parts_of(data, size)
  for number, part in enumerate(parts):
    text.add(part, is_last=number == len(parts) - 1)
    taken.append(text.take(**kwargs))
  assert text.is_done
  assert b''.join(taken) == bytes(text)
  return taken, bytes(text)


@pytest.mark.parametrize('size', [1, 2, 3, 50])
def test_a_text_ends_before_the_first_stop_string(size):
  data = b'one two, three END four THREE five'
  for stop, end in (
    ((b'END',), 15),
    ((b'THREE', b' four'), 18),
    ((b'o',), 0),
    ((b'ee E', b'thr'), 9),
    ((b'absent',), len(data)),
    ((), len(data)),
  ):
    taken, text = grow(data, size, stop=stop)
    assert text == data[:end]
    # No byte of a stop string was ever shown.
    assert b''.join(taken) == data[:end]


@pytest.mark.parametrize('size', [1, 3, 50])
def test_a_text_ends_at_the_limit(size):
  data = b'0123456789'
  assert grow(data, size, limit=7)[1] == data[:7]
  # A stop string beyond it is none.
  assert grow(data, size, limit=7, stop=(b'78',))[1] == data[:7]
  assert grow(data, size, limit=7, stop=(b'23',))[1] == data[:2]


@pytest.mark.parametrize('size', [1, 2, 3, 50])
@pytest.mark.parametrize(
  ('limit', 'stop', 'end'),
  [
    # The limit lies inside a stop string, behind its last byte, before it.
    (6, (b'4567',), 6),
    (7, (b'4567',), 7),
    (8, (b'4567',), 4),
    (4, (b'4567',), 4),
    # One lies inside another: the first that is complete counts.
    (9, (b'1234', b'23'), 2),
    (9, (b'234', b'34', b'4'), 2),
  ],
)
def test_parts_do_not_change_where_a_text_ends(size, limit, stop, end):
  data = b'0123456789'
  assert grow(data, size, limit=limit, stop=stop)[1] == data[:end]


def test_characters_come_whole_unless_asked_for():
  data = 'aé€😀b'.encode()
  taken, _ = grow(data, 1)
  assert [x.decode() for x in taken if x] == ['a', 'é', '€', '😀', 'b']
  taken, _ = grow(data, 1, splits_characters=True)
  assert all(len(x) == 1 for x in taken)


def test_bytes_that_are_no_character_come_as_they_are():
  for data in (b'\xff\xfe', b'\x80\x80\x80\x80\x80', b'a\xe2\x82', b'\xc3('):
    assert grow(data, 1)[1] == data
  # A first byte is held until the next shows whether it is one.
  text = GrowingText(9)
  text.add(b'\xc3', is_last=False)
  assert text.take() == b''
  text.add(b'(', is_last=False)
  assert text.take() == b'\xc3('


@pytest.mark.parametrize(
  ('name', 'value', 'allowed'),
  [
    ('max_new_bytes', 0, '1 to 2^24'),
    ('num_samples', 0, '1 to 2^24'),
    ('temperature', -0.1, '0, or >= 1e-6'),
    ('temperature', float('nan'), '0, or >= 1e-6'),
    ('level_temperature', 1e-9, '0, or >= 1e-6'),
    ('top_k', -1, '0 to 2^31 - 1'),
    ('top_p', 0.0, '0 < value <= 1'),
    ('top_p', 1.1, '0 < value <= 1'),
    ('min_p', 1.5, '0 to 1'),
    ('seed', -1, '0 to 2^32 - 1'),
    ('stop', b'', 'bytes, at least 1'),
    ('stop', 'text', 'bytes, at least 1'),
  ],
)
def test_options_out_of_range(name, value, allowed):
  given = (value,) if name == 'stop' else value
  with pytest.raises(ValueError) as error:
    Options(**{name: given})
  assert str(error.value) == f'{name}: got {value!r}, allowed: {allowed}'
