"""A run as a model of the lm-evaluation-harness.

Its unit is the byte: texts are UTF-8, and `max_gen_toks` counts bytes.

Log-likelihoods are those of `abstractinator evaluate`, in nats. Of a run with
codes they are lower bounds, see `texts_bits`; the entropy model's are exact.
"""

import json
import math
import warnings
from collections.abc import Sequence
from typing import Any

from abstractinator import types
from abstractinator.evaluation.evaluator import Evaluator
from abstractinator.evaluation.texts_bits import texts_bits
from abstractinator.evaluation.windows import Passage
from abstractinator.inference import TrainedPyramid

_MAX_NEW_BYTES = 256
_OPTIONS = ('temperature', 'top_k', 'top_p', 'min_p')
# Settings of the harness that need nothing of us.
_IGNORED = frozenset({'until', 'do_sample', 'max_gen_toks', 'num_beams'})


class HarnessModel:
  """What the harness asks of a model, on plain arguments."""

  def __init__(self, evaluator: Evaluator, *, entropy_model_only: bool = False):
    """Compiles nothing yet.

    Args:
      evaluator: Of the run.
      entropy_model_only: Whether to take the entropy model alone.
    """
    self._evaluator = evaluator
    self._entropy_model_only = entropy_model_only
    self._level = None
    if evaluator.has_codes:
      self._level = TrainedPyramid(evaluator.config, evaluator.variables)

  def loglikelihood(
    self, requests: Sequence[tuple[str, str]]
  ) -> list[tuple[float, bool]]:
    """Scores continuations.

    A context that is longer than a row is read from its end.

    Args:
      requests: Context, which may be empty, and continuation of each.

    Returns:
      Of each, its log-likelihood in nats, and whether `generate_until` would
      give it, greedily.
    """
    pairs = [(a.encode(), b.encode()) for a, b in requests]
    passages = [
      Passage(types.bytes_to_ids(a + b, add_eos=False), counted_from=len(a))
      for a, b in pairs
    ]
    scored = texts_bits(
      self._evaluator, passages, entropy_model_only=self._entropy_model_only
    )
    if self._level is None:
      is_greedy = [x.num_right_bytes == x.num_bytes for x in scored]
    else:
      is_greedy = self._is_greedy(pairs)
    return [
      (-x.bits * math.log(2.0), greedy)
      for x, greedy in zip(scored, is_greedy, strict=True)
    ]

  def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
    """Scores whole documents, their ends included, as `evaluate` does.

    Args:
      texts: The documents.

    Returns:
      Log-likelihoods, in nats.
    """
    scored = texts_bits(
      self._evaluator,
      [Passage(types.bytes_to_ids(text.encode())) for text in texts],
      entropy_model_only=self._entropy_model_only,
      is_corpus=True,
    )
    return [-x.bits * math.log(2.0) for x in scored]

  def generate_until(
    self, requests: Sequence[tuple[str, dict[str, Any]]]
  ) -> list[str]:
    """Continues contexts.

    Args:
      requests: Context of each, and settings: `until`, `max_gen_toks` (bytes),
        `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`.

    Returns:
      The new texts.

    Raises:
      ValueError: If a setting is unknown, or the run has no codes.
    """
    if self._level is None:
      raise ValueError(
        "objective: got 'entropy_model', allowed: 'all' for tasks that generate"
      )
    # Those of the same settings go in one batch.
    groups: dict[str, list[int]] = {}
    for number, (_, settings) in enumerate(requests):
      key = json.dumps(settings, sort_keys=True)
      groups.setdefault(key, []).append(number)
    found = [''] * len(requests)
    for key, numbers in groups.items():
      options = _options(json.loads(key))
      prompts = [requests[number][0].encode() for number in numbers]
      for number, text in zip(
        numbers, self._generate(prompts, **options), strict=True
      ):
        found[number] = text.decode('utf-8', errors='replace')
    return found

  def _is_greedy(self, pairs) -> list[bool]:
    longest = max((len(b) for _, b in pairs), default=0)
    has_first = self._evaluator.config.model.top_lm is not None
    has_first |= self._entropy_model_only
    # Without a top LM nothing says the first code of a text.
    contexts = sorted({a for a, _ in pairs if a or has_first})
    texts = {}
    if contexts and longest:
      new = self._generate(contexts, max_new_bytes=longest)
      texts = dict(zip(contexts, new, strict=True))
    return [a in texts and texts[a].startswith(b) for a, b in pairs]

  def _generate(self, prompts, **options) -> list[bytes]:
    with warnings.catch_warnings():
      # That long prompts are read from their ends is said above.
      warnings.simplefilter('ignore')
      samples = self._level.generate(
        prompts, entropy_model_only=self._entropy_model_only, **options
      )
    return [text for (text,) in samples]


def _options(settings: dict[str, Any]) -> dict[str, Any]:
  """Fields of `generation.options.Options` for settings of the harness."""
  unknown = sorted(set(settings) - _IGNORED - set(_OPTIONS))
  if unknown:
    raise ValueError(
      f'generation_kwargs: got {", ".join(unknown)}, allowed:'
      f' {", ".join(sorted(_IGNORED | set(_OPTIONS)))}'
    )
  until = settings.get('until') or []
  until = [until] if isinstance(until, str) else until
  options = {name: settings[name] for name in _OPTIONS if name in settings}
  if not settings.get('do_sample', options.get('temperature', 0) > 0):
    options['temperature'] = 0.0
  elif 'temperature' not in options:
    options['temperature'] = 1.0
  return {
    'max_new_bytes': settings.get('max_gen_toks', _MAX_NEW_BYTES),
    'stop': tuple(text.encode() for text in until if text),
    **options,
  }
