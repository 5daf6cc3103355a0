"""New bytes of one text, as they come."""

from collections.abc import Sequence


class GrowingText:
  """Bytes up to a limit or a stop string.

  Attributes:
    is_done: Whether nothing will come any more.
  """

  def __init__(self, limit: int, stop: Sequence[bytes] = ()):
    """Empty.

    Args:
      limit: Most bytes.
      stop: Strings before the first of which the text ends.
    """
    self._limit, self._stop = limit, tuple(stop)
    self._bytes = bytearray()
    self._num_taken = 0
    self.is_done = False

  def __bytes__(self) -> bytes:
    return bytes(self._bytes)

  def add(self, data: bytes, *, is_last: bool) -> None:
    """Appends what came; nothing comes after the last."""
    if self.is_done:
      return
    old = len(self._bytes)
    self._bytes += data
    begin = max(0, old - max(map(len, self._stop), default=1) + 1)
    found = [at for s in self._stop if (at := self._bytes.find(s, begin)) >= 0]
    end = min([*found, self._limit])
    self.is_done = is_last or bool(found) or len(self._bytes) >= self._limit
    del self._bytes[end:]

  def take(self, *, splits_characters: bool = False) -> bytes:
    """What is certain by now and was not taken before.

    That is not what may yet turn out to be a stop string, nor, unless asked
    for, the first bytes of a character in UTF-8 whose others may follow.
    """
    end = len(self._bytes)
    if not self.is_done:
      end -= _held_back(self._bytes, self._stop)
      if not splits_characters:
        end = _whole_characters(self._bytes, end)
    end = max(end, self._num_taken)
    taken = bytes(self._bytes[self._num_taken : end])
    self._num_taken = end
    return taken


def _held_back(data: bytearray, stop: Sequence[bytes]) -> int:
  """Length of the longest end of data that begins a stop string."""
  longest = max(map(len, stop), default=1) - 1
  for size in range(min(longest, len(data)), 0, -1):
    end = bytes(data[-size:])
    if any(s.startswith(end) for s in stop):
      return size
  return 0


def _whole_characters(data: bytearray, end: int) -> int:
  """Where the character that `end` would split begins, else `end`."""
  for begin in range(end - 1, max(end - 4, -1), -1):
    first = data[begin]
    if first >> 6 == 0b10:
      continue
    size = 2 + (first >= 0xE0) + (first >= 0xF0) if 0xC2 <= first < 0xF5 else 1
    return begin if begin + size > end else end
  return end
