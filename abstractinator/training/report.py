"""What a run tells those who started it."""

import re


def closing(
  workdir: str, objective: str, total_steps: int, tags: dict[str, float]
) -> str:
  """What to tell at the end: how it went, where it lies, what comes next.

  Args:
    workdir: Where it lies.
    objective: Name of what was trained.
    total_steps: Of the run.
    tags: Its last held-out metrics, none if it was done before.
  """
  lines = [f'run {workdir}: {total_steps} steps done']
  if tags:
    summary = {k.removeprefix('eval/'): v for k, v in tags.items()}
    lines.append(f'held-out documents: {headline(summary)}')
  else:
    lines.append('nothing was left to do; --config.max_steps=N trains longer')
  uses = [
    f'  abstractinator reconstruct {workdir} FILE',
    f'  abstractinator segment {workdir} FILE',
  ]
  if objective == 'entropy_model':
    uses = [
      '  python train.py --config=CONFIG'
      " '--config.model.levels[0].freeze_entropy_model=True'"
      f" '--config.model.levels[0].load_entropy_model_from={workdir}'"
    ]
  return '\n'.join(
    [
      *lines,
      'next:',
      *uses,
      f'  tensorboard --logdir {workdir}/tensorboard'
      '  (pip install tensorboard)',
    ]
  )


def headline(summary: dict[str, float]) -> str:
  """The held-out metrics that matter most, in a line."""
  name = 'expander_bits_per_byte'
  prefixes = [
    k.removesuffix(name) for k in summary if re.fullmatch(rf'(.*/)?{name}', k)
  ]
  if not prefixes and 'top_lm_code_bits_per_code' in summary:
    bits, accuracy = (
      summary[f'top_lm_code_{x}'] for x in ('bits_per_code', 'accuracy')
    )
    return f'top LM {bits:.3f} bits/code, {accuracy:.1%} of codes right'
  if not prefixes:
    bits = summary['entropy_model_bits_per_byte']
    accuracy = summary['entropy_model_byte_accuracy']
    return f'entropy model {bits:.3f} bits/byte, {accuracy:.1%} of bytes right'
  parts = []
  for prefix in sorted(prefixes):
    of_level = {
      k.removeprefix(prefix): v
      for k, v in summary.items()
      if k.startswith(prefix)
    }
    parts += [prefix.replace('/', ': ') + _of_level(of_level)]
  if 'top_lm_code_bits_per_byte' in summary:
    code, end = (
      summary[f'top_lm_{part}_bits_per_byte'] for part in ('code', 'end')
    )
    parts.append(f'codes {code + end:.3f} bits/byte under the top LM')
  if 'total_bits_per_byte' in summary:
    parts.append(f'{summary["total_bits_per_byte"]:.3f} bits/byte in total')
  if 'free_running_byte_accuracy' in summary:
    parts.append(f'{summary["free_running_byte_accuracy"]:.1%} free-running')
  return ('; ' if len(prefixes) > 1 else ', ').join(parts)


def _of_level(summary: dict[str, float]) -> str:
  given_codes = summary['expander_bits_per_byte'] + summary['end_bits_per_byte']
  parts = [
    f'entropy model {summary["entropy_model_bits_per_byte"]:.3f} bits/byte',
    f'expander {given_codes:.3f} bits/byte given codes (ends'
    f' {summary["end_bits_per_byte"]:.3f} of them)',
    f'{summary["bytes_per_segment"]:.2f} bytes/segment',
    *_live_codes(summary),
  ]
  for unit in ('byte', 'code'):
    name = f'teacher_forced_{unit}_accuracy'
    if name in summary:
      parts.append(f'{unit} accuracy {summary[name]:.1%} teacher-forced')
  return ', '.join(parts)


def _live_codes(summary: dict[str, float]) -> list[str]:
  """Of all codes; of each stage where all of them are too many to count."""
  name = 'live_code_fraction'
  if name in summary:
    return [f'{summary[name]:.1%} of the codes live']
  live = [f'{v:.1%}' for k, v in summary.items() if k.endswith(f'/{name}')]
  return [f'{" and ".join(live)} of the codes of each stage live']
