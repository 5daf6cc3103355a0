"""XLA flags that compile tests in a third of the time, to slower code."""

from importlib import metadata

# Value of each option in tests, and its default.
_OPTIONS = {
  'xla_backend_optimization_level': (0, 3),
  'xla_llvm_disable_expensive_passes': (True, False),
}
if metadata.version('jaxlib').startswith('0.10.'):
  # They pass through MLIR, which takes half the time of a compilation. From
  # 0.11 on they cannot be turned off.
  _OPTIONS['xla_cpu_use_fusion_emitters'] = (False, True)
  # Parts to compile at once. To divide a program into them takes longer, where
  # other tests have the other cores.
  _OPTIONS['xla_cpu_parallel_codegen_split_count'] = (1, 32)
QUICK = tuple(f'--{k}={str(v).lower()}' for k, (v, _) in _OPTIONS.items())
# For `jax.jit(compiler_options=...)`.
AS_USERS = {k: v for k, (_, v) in _OPTIONS.items()}


def joined(given: str, *flags: str) -> str:
  """Flags given, and those of `flags` that are not."""
  names = {flag.partition('=')[0] for flag in given.split()}
  new = [flag for flag in flags if flag.partition('=')[0] not in names]
  return ' '.join([given, *new]).strip()
