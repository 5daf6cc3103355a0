"""A run as a model of the lm-evaluation-harness, which this module imports.

The unit of the model is the byte: texts are UTF-8, and `max_gen_toks`, by any
of its names, counts bytes. Log-likelihoods are those of `abstractinator
evaluate`, in nats. For a run with codes they are lower bounds, see
`evaluate.texts_bits`; for an entropy model they are exact.
"""

import json
import math
import warnings
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from abstractinator import types
from abstractinator.evaluation.evaluate import texts_bits
from abstractinator.evaluation.evaluator import Evaluator
from abstractinator.evaluation.windows import Passage
from abstractinator.inference import TrainedPyramid

_MAX_NEW_BYTES = 256
_OPTIONS = ('temperature', 'top_k', 'top_p', 'min_p')
# Settings of the harness that `_options` reads or that change nothing.
_OTHERS = ('until', 'do_sample', 'max_gen_toks', 'num_beams')


class HarnessModel(LM):
  """Model that the harness asks for likelihoods and continuations."""

  def __init__(
    self, evaluator: Evaluator, *, entropy_model_only: bool = False
  ) -> None:
    """Wraps the evaluator; programs are compiled at first use.

    Args:
      evaluator: Evaluator of the run.
      entropy_model_only: Whether to use the entropy model of the first level
        alone.
    """
    super().__init__()
    self._evaluator = evaluator
    self._entropy_model_only = entropy_model_only
    self._pyramid = None
    if evaluator.has_codes:
      self._pyramid = TrainedPyramid(evaluator.config, evaluator.variables)

  def loglikelihood(
    self, requests: Sequence[Instance]
  ) -> list[tuple[float, bool]]:
    """Scores continuations.

    A context that is longer than a row is read from its end.

    Args:
      requests: Requests whose `args` are a context, which may be empty, and its
        continuation.

    Returns:
      For each request the log-likelihood of the continuation in nats, and
      whether greedy generation gives this continuation.
    """
    pairs = [tuple(text.encode() for text in x.args) for x in requests]
    passages = [
      Passage(types.bytes_to_ids(a + b, add_eos=False), counted_from=len(a))
      for a, b in pairs
    ]
    scored = texts_bits(
      self._evaluator, passages, entropy_model_only=self._entropy_model_only
    )
    if self._pyramid is None:
      is_greedy = [x.num_right_bytes == x.num_bytes for x in scored]
    else:
      is_greedy = self.is_greedy(pairs)
    return [
      (-x.bits * math.log(2.0), greedy)
      for x, greedy in zip(scored, is_greedy, strict=True)
    ]

  def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
    """Scores whole documents, their ends included, as `evaluate` does.

    Args:
      requests: Requests whose `args` are a document.

    Returns:
      For each request the log-likelihood of the document in nats.
    """
    scored = texts_bits(
      self._evaluator,
      [Passage(types.bytes_to_ids(x.args[0].encode())) for x in requests],
      entropy_model_only=self._entropy_model_only,
      is_corpus=True,
    )
    return [-x.bits * math.log(2.0) for x in scored]

  def generate_until(self, requests: Sequence[Instance]) -> list[str]:
    """Continues contexts.

    Args:
      requests: Requests whose `args` are a context and settings: `until`,
        `max_gen_toks` (bytes), `do_sample`, `temperature`, `top_k`, `top_p`,
        `min_p`.

    Returns:
      For each request the new text.

    Raises:
      ValueError: If a setting is unknown, or the run has no codes.
    """
    # Contexts with equal settings are continued in one batch.
    groups: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
      key = json.dumps(request.args[1], sort_keys=True)
      groups.setdefault(key, []).append(number)
    found = [''] * len(requests)
    for key, numbers in groups.items():
      prompts = [requests[number].args[0].encode() for number in numbers]
      texts = self._generate(prompts, **_options(json.loads(key)))
      for number, text in zip(numbers, texts, strict=True):
        found[number] = text.decode('utf-8', errors='replace')
    return found

  def is_greedy(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[bool]:
    """Tells for each context and continuation whether generation gives it."""
    longest = max((len(b) for _, b in pairs), default=0)
    has_first = self._evaluator.config.model.top_lm is not None
    has_first |= self._entropy_model_only
    # Without a top LM nothing predicts the first code of a text.
    contexts = sorted({a for a, _ in pairs if a or has_first})
    texts = {}
    if contexts and longest:
      new = self._generate(contexts, max_new_bytes=longest)
      texts = dict(zip(contexts, new, strict=True))
    return [not b or (a in texts and texts[a].startswith(b)) for a, b in pairs]

  def _generate(self, prompts: Sequence[bytes], **options: Any) -> list[bytes]:
    if self._pyramid is None:
      raise ValueError(
        "objective: got 'entropy_model', allowed: 'all' for tasks that generate"
      )
    with warnings.catch_warnings():
      # The harness expects that long contexts are read from their ends.
      warnings.simplefilter('ignore')
      samples = self._pyramid.generate(
        prompts, entropy_model_only=self._entropy_model_only, **options
      )
    return [text for (text,) in samples]


def _options(settings: dict[str, Any]) -> dict[str, Any]:
  """Returns fields of `decoding.options.Options` for harness settings."""
  # The harness knows several names of some settings.
  settings = dict(normalize_gen_kwargs(settings, _MAX_NEW_BYTES))
  unknown = sorted(set(settings).difference(_OTHERS, _OPTIONS))
  if unknown:
    raise ValueError(
      f'generation_kwargs: got {", ".join(unknown)}, allowed:'
      f' {", ".join(sorted((*_OTHERS, *_OPTIONS)))}'
    )
  options = {name: settings[name] for name in _OPTIONS if name in settings}
  options.setdefault('temperature', float(settings['do_sample']))
  return {
    'max_new_bytes': settings['max_gen_toks'],
    'stop': tuple(text.encode() for text in settings['until'] if text),
    **options,
  }
