"""How XLA compiles in tests: in half the time, to slower code."""

QUICK = (
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
)


def joined(given: str, *flags: str) -> str:
  """Flags given, and those of `flags` that are not."""
  names = {flag.partition('=')[0] for flag in given.split()}
  new = [flag for flag in flags if flag.partition('=')[0] not in names]
  return ' '.join([given, *new]).strip()
