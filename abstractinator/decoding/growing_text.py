"""A text that grows as bytes are generated, up to a limit or stop string."""

import codecs
from collections.abc import Sequence


class GrowingText:
  """New bytes of one text.

  Attributes:
    is_done: Whether the text has ended.
  """

  def __init__(self, limit: int, stop: Sequence[bytes] = ()):
    """Begins an empty text.

    Args:
      limit: The most bytes of the text.
      stop: Byte strings; the text ends before the first of them that is
        complete within the limit, the longest of several.
    """
    self._limit, self._stop = limit, tuple(stop)
    self._bytes = bytearray()
    self._num_taken = 0
    self.is_done = False

  def __bytes__(self) -> bytes:
    return bytes(self._bytes)

  def add(self, data: bytes, *, is_last: bool) -> None:
    """Appends bytes, unless the text has ended.

    Args:
      data: New bytes.
      is_last: Whether the text ends after them.
    """
    if self.is_done:
      return
    old = len(self._bytes)
    self._bytes += data
    # A stop string is one only within the limit: how bytes come in parts then
    # changes nothing.
    del self._bytes[self._limit :]
    begin = max(0, old - max(map(len, self._stop), default=1) + 1)
    found = [
      (at + len(s), at)
      for s in self._stop
      if (at := self._bytes.find(s, begin)) >= 0
    ]
    self.is_done = is_last or bool(found) or len(self._bytes) >= self._limit
    if found:
      _, at = min(found)
      del self._bytes[at:]

  def take(self, *, splits_characters: bool = False) -> bytes:
    """Returns the bytes that are final and were not returned before.

    Bytes that may turn out to begin a stop string are held back.

    Args:
      splits_characters: Whether the bytes may end within a UTF-8 character;
        otherwise the first bytes of an unfinished character are held back.
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
  """Returns the length of the longest end of data that begins a stop string."""
  longest = max(map(len, stop), default=1) - 1
  for size in range(min(longest, len(data)), 0, -1):
    end = bytes(data[-size:])
    if any(s.startswith(end) for s in stop):
      return size
  return 0


def _whole_characters(data: bytearray, end: int) -> int:
  """Returns where the character that `end` would split begins, else `end`."""
  decoder = codecs.getincrementaldecoder('utf-8')('replace')
  # A character has at most 4 bytes.
  decoder.decode(data[max(end - 4, 0) : end])
  unfinished, _ = decoder.getstate()
  return end - len(unfinished)
