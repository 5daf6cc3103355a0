"""What comes back when what codes decode to is encoded again.

    python -m abstractinator.benchmarks.round_trip WORKDIR

Texts are encoded, their codes decoded, and the bytes that come encoded once
more: held-out texts, and what the run makes of the beginnings of those. A
segment whose end a head says need not be one by the rule of segmentation, and
its code need not be the one that it was decoded from. With `ends='entropy'` all
boundaries are found again.
"""

import argparse

import jax
import numpy as np

from abstractinator import inference
from abstractinator.benchmarks import open_segment, table
from abstractinator.codes import codes
from abstractinator.types import NUM_BYTES


def main() -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('workdir')
  parser.add_argument('--num_texts', type=int, default=128)
  parser.add_argument('--temperature', type=float, default=0.8)
  args = parser.parse_args()
  level = inference.load(args.workdir)
  prompts, _ = open_segment.cut_texts(level.config, args.num_texts)
  # What comes has to have room in a row, and may be longer.
  longest = level.config.data.sequence_length // 4
  texts = [ids.astype(np.uint8).tobytes()[:longest] for ids in prompts]
  new = level.generate(
    texts, max_new_bytes=longest, temperature=args.temperature
  )
  made = [sample for (sample,) in new if sample]
  print(
    f'{args.workdir}, {jax.devices()[0].device_kind}, jax {jax.__version__}\n'
  )
  rows = [measure(level, texts, 'held out'), measure(level, made, 'generated')]
  print(table.markdown(rows))


def measure(
  level: inference.TrainedPyramid, texts: list[bytes], name: str
) -> dict:
  """Shares of what comes back, of all bytes and segments of some texts.

  Args:
    level: What encodes and decodes; its first level is looked at.
    texts: Each of so few bytes that what it decodes to fits in a row.
    name: Of the row of the table.

  Returns:
    The row.
  """
  encoded = level.encode_all(texts, level=0)
  decoded = level._decode(codes.join(encoded))
  num_bytes_BP = np.sum(
    (decoded.ids_BPL < NUM_BYTES)
    & (np.arange(decoded.ids_BPL.shape[-1]) < decoded.length_BP[..., None]),
    axis=-1,
  )
  outs = level.decode_all(encoded)
  spans = [
    _spans(num_bytes_BP[row, : x.count_B[0]]) for row, x in enumerate(encoded)
  ]
  again = level.encode_all(outs, level=0)
  new_spans = [_spans(map(len, level.segment(out))) for out in outs]
  ends, new_ends = (
    [{end for _, end in one} for one in found] for found in (spans, new_spans)
  )
  common = sum(len(a & b) for a, b in zip(ends, new_ends, strict=True))
  same = sum(
    _num_same(*one)
    for one in zip(encoded, spans, again, new_spans, strict=True)
  )
  right = sum(
    a == b
    for text, out in zip(texts, outs, strict=True)
    for a, b in zip(text, out, strict=False)
  )
  return {
    'texts': name,
    'count': len(texts),
    'bytes at the same place': right / sum(map(len, texts)),
    'ends that are ends again': common / sum(map(len, ends)),
    'ends that were ends before': common / sum(map(len, new_ends)),
    'codes that come back': same / sum(map(len, spans)),
  }


def _spans(lengths):
  """Begin and end of each segment, less those without a byte."""
  ends = np.cumsum(list(lengths)).tolist()
  spans = zip([0, *ends[:-1]], ends, strict=True)
  return [span for span in spans if span[0] < span[1]]


def _num_same(old, old_spans, new, new_spans):
  """Segments that are there again, with the same codes."""
  by_span = dict(zip(old_spans, _codes(old), strict=False))
  return sum(
    np.array_equal(by_span.get(span, ()), code)
    for span, code in zip(new_spans, _codes(new), strict=False)
  )


def _codes(coded):
  return coded.codes_N.reshape(coded.count_B.sum(), -1)


if __name__ == '__main__':
  main()
