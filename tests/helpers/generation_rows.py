"""Rows continued with caches, and what whole calls say of the result."""

import contextlib
import dataclasses
import functools
from unittest import mock

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from abstractinator.decoding import generate as generation
from abstractinator.decoding.segments import Expanded
from abstractinator.decoding.state import Request
from abstractinator.model.compressor import Below
from abstractinator.model.top_lm import CodeSequence
from abstractinator.ops.sampling import Filters
from abstractinator.types import EOS_ID, NUM_BYTES, Array, Batch, Segments
from tests.helpers.jitted import jit

SLOTS = 3


@dataclasses.dataclass
class Level:
  """Ids, segments and codes of one row at one level, prompt included.

  Attributes:
    ids: All ids of the row.
    lengths: Number of ids of each segment.
    codes: Codes of each segment, a list of Q each.
    num_known: Ids of the prompt that are there to stay.
    num_whole: Whole segments of the prompt.
  """

  ids: list
  lengths: list
  codes: list
  num_known: int
  num_whole: int


@flax.struct.dataclass
class Extension:
  """New bytes of a call of `extend`, and the codes and ids they come from.

  Attributes:
    bytes_BN: New bytes, those of each row at the front, [B, N] int32.
    count_B: Their number, [B] int32.
    codes_BU: Codes of the top level, [B, U] int32.
    num_slots_B: Slots of the top level that hold a segment, [B] int32.
    num_known: First ids that a prompt held, [B] int32 for each level.
    levels: Ids of each level, bottom first.
  """

  bytes_BN: Array
  count_B: Array
  codes_BU: Array
  num_slots_B: Array
  num_known: list[Array]
  levels: list[Expanded]


@contextlib.contextmanager
def recorded(module, name):
  """Records arguments and results of the calls of a function of a module."""
  calls, function = [], getattr(module, name)

  def call(*args):
    result = function(*args)
    calls.append((args, result))
    return result

  with mock.patch.object(module, name, call):
    yield calls


def extend(pyramid, state, stopped_B):
  """Calls `generate.extend`; returns an `Extension` and the state."""
  with (
    recorded(generation.top_codes, 'extend') as tops,
    recorded(generation.expansion, 'expand') as levels,
  ):
    bytes_BN, count_B, state = generation.extend(
      pyramid, state, stopped_B, num_slots=SLOTS
    )
  ((_, (codes_BU, num_slots_B, *_)),) = tops
  extension = Extension(
    bytes_BN,
    count_B,
    codes_BU,
    num_slots_B,
    num_known=[args[1].known.num_known_B for args, _ in levels[::-1]],
    levels=[expanded for _, (expanded, _) in levels[::-1]],
  )
  return extension, state


def without_ends(variables):
  """Random parameters end documents at once; these do not."""

  def edit(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if 'top_lm/end_head' in name:
      return 0 * x
    if name.endswith('expander/vocabulary/head/kernel'):
      return x.at[:, EOS_ID].set(0)
    return x

  return jax.tree_util.tree_map_with_path(edit, variables)


def filters(count, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0):
  full = functools.partial(jnp.full, (count,))
  return Filters(
    full(temperature, jnp.float32),
    full(top_k, jnp.int32),
    full(top_p, jnp.float32),
    full(min_p, jnp.float32),
  )


def prompts_of(lengths, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(97, 123, n).astype(np.uint8).tobytes() for n in lengths]


class Generator:
  """The functions of a pyramid, each compiled once a shape."""

  def __init__(self, model, variables, size, capacity):
    self.model, self.variables, self.size = model, variables, size
    self.start = jit(
      functools.partial(model.apply, method=generation.start),
      capacity=capacity,
      num_slots=SLOTS,
    )
    self.extend = jit(model.apply, method=extend)
    self.compress = [
      jit(model.apply, method=functools.partial(_compress, number=number))
      for number in range(len(model.config.levels))
    ]

  def request(self, count, limit, seed=0, **kwargs):
    keys = jnp.broadcast_to(jax.random.key(seed), (count,))
    return Request(
      keys,
      filters(count, **kwargs),
      filters(count, **kwargs),
      jnp.full((count,), limit, jnp.int32),
    )

  def run(self, prompts, request):
    """Continues prompts until all are done.

    Returns:
      The bytes of each row, and the extensions.
    """
    ids = np.zeros((len(prompts), self.size), np.int32)
    for row, prompt in enumerate(prompts):
      ids[row, : len(prompt)] = list(prompt)
    count = np.array([len(prompt) for prompt in prompts], np.int32)
    state = self.start(self.variables, ids, count, request)
    texts, extensions = [bytearray() for _ in prompts], []
    stopped = np.zeros(len(prompts), bool)
    while not state.is_done_B.all():
      extension, state = self.extend(self.variables, state, stopped)
      extension = jax.device_get(extension)
      extensions.append(extension)
      for text, row, n in zip(
        texts, extension.bytes_BN, extension.count_B, strict=True
      ):
        text += bytes(row[:n].tolist())
    return [bytes(text) for text in texts], extensions

  def levels(self, prompts, extensions):
    """Returns the `Level` of each row at each level: [row][level]."""
    rows = [[] for _ in prompts]
    begun = self._begin(prompts)
    number_of_levels = len(self.model.config.levels)
    for row in range(len(prompts)):
      codes = begun[row][-1].codes
      for extension in extensions:
        queries = self.queries(number_of_levels - 1)
        new = extension.codes_BU[row].reshape(-1, queries)
        codes += new[: extension.num_slots_B[row]].tolist()
      for number in reversed(range(number_of_levels)):
        level, known = begun[row][number], begun[row][number].ids
        level.codes, level.ids = codes, known[: sum(level.lengths)]
        is_first = True
        for extension in extensions:
          expanded = extension.levels[number]
          for slot, length in enumerate(expanded.length_BP[row]):
            if not length:
              continue
            ids = expanded.ids_BPL[row, slot, :length].tolist()
            if is_first:
              # What was there is kept.
              there = known[len(level.ids) :][: level.num_known]
              assert ids[: len(there)] == there
              assert level.num_known == len(level.ids) + len(there)
              assert extension.num_known[number][row] == len(there)
              is_first = False
            level.ids += ids
            level.lengths.append(int(length))
        rows[row].insert(0, level)
        if number:
          codes = split(level.ids, self.queries(number - 1))
    return rows

  def queries(self, number):
    return self.model.config.levels[number].pooling.num_queries

  def _begin(self, prompts):
    """Prompts at each level, from whole calls: what is open ends nothing.

    Whether it is open is what is said of one id more, whatever that is.
    """
    rows, below = [[] for _ in prompts], None
    ids = [list(prompt) for prompt in prompts]
    size = self.size + 1
    for number, config in enumerate(self.model.config.levels):
      queries = self.queries(number)
      batch = make_batch([[*row, 0] for row in ids], size)
      compressed = jax.device_get(
        self.compress[number](self.variables, batch, below)
      )
      assert not compressed.segments.is_capacity_bound_BS.any()
      vectors, above = [], []
      for row, known in enumerate(ids):
        (starts,) = np.nonzero(compressed.segments.is_start_BS[row])
        # A segment is whole if another one starts after it.
        lengths = np.diff(starts).tolist()
        codes = compressed.quantized.codes_BP[row].reshape(-1, queries)
        codes = codes[: len(lengths)].tolist()
        rows[row].append(
          Level(list(known), lengths, codes, len(known), len(lengths))
        )
        above.append([code for of_slot in codes for code in of_slot])
        vectors.append(compressed.quantized.vectors_BPD[row])
      ids, size = above, (self.size + 1) * queries
      quantizer = functools.partial(_codebooks, number=number)
      below = Below(
        jnp.asarray(np.stack(vectors))[:, :size],
        self.model.apply(self.variables, method=quantizer),
      )
      # One slot an id, so that none runs short.
      assert config.segmentation.capacity_length == 1
    return rows


def _compress(pyramid, *args, number):
  return pyramid.levels[number].compress(*args)


def _codebooks(pyramid, number):
  return pyramid.levels[number].compressor.quantizer.codebooks()


def split(ids, size):
  """Whole parts of a list."""
  return [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]


def make_batch(rows, size):
  ids = np.zeros((len(rows), size), np.int32)
  document = np.full((len(rows), size), -1, np.int32)
  for row, of_row in enumerate(rows):
    ids[row, : len(of_row)] = of_row
    document[row, : len(of_row)] = 0
  return Batch(ids, document, np.arange(len(rows), dtype=np.int32))


def make_segments(rows, size):
  """Segments of these lengths."""
  index = np.full((len(rows), size), -1, np.int32)
  offset = np.zeros((len(rows), size), np.int32)
  for row, lengths in enumerate(rows):
    total = sum(lengths)
    index[row, :total] = np.repeat(np.arange(len(lengths)), lengths)
    offset[row, :total] = np.concatenate([np.arange(n) for n in lengths])
  is_start = (index >= 0) & (offset == 0)
  return Segments(
    index_BS=index,
    is_start_BS=is_start,
    is_end_BS=is_start,
    offset_BS=offset,
    count_B=np.array([len(lengths) for lengths in rows], np.int32),
    is_capacity_bound_BS=np.zeros_like(is_start),
  )


@functools.cache
def whole_calls(model, number):
  """The teacher-forced expander of a level, given codes and lengths."""

  def call(m, batch, segments, codes_BU):
    level = m.levels[number]
    below = _codebooks(m, number - 1) if number else None
    memory_BUD = level.compressor.quantizer.lookup(codes_BU)
    return level.expander(
      batch.ids_BS, batch.document_BS, segments, memory_BUD, None, below
    )

  return jit(model.apply, method=call)


@functools.cache
def whole_top(model):
  def call(m, codes_BU, document_BU):
    vectors_BUD = m.levels[-1].compressor.quantizer.lookup(codes_BU)
    return m.top_lm(
      CodeSequence(codes_BU, vectors_BUD, document_BU, document_BU < -1)
    )

  return jit(model.apply, method=call)


def pad(rows, size):
  out = np.zeros((len(rows), size), np.int32)
  for row, of_row in enumerate(rows):
    out[row, : len(of_row)] = of_row
  return out


NO_NEXT_ID = [NUM_BYTES, NUM_BYTES + 2]
EOS = EOS_ID
