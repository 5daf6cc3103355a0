"""What XLA has to know of a GPU that is not at hand."""

from abstractinator.training.chips import CHIPS, Chip

# Of compute capability 9.0, by NVIDIA's programming guide (shared memory in
# bytes, registers in words of 32 bits) and the data sheets of the cards.
_HOPPER = dict(
  threads_per_block_limit=1024,
  threads_per_warp=32,
  threads_per_core_limit=2048,
  shared_memory_per_block=48 << 10,
  shared_memory_per_block_optin=227 << 10,
  shared_memory_per_core=228 << 10,
  registers_per_core_limit=64 << 10,
  registers_per_block_limit=64 << 10,
  core_count=132,
  fpus_per_core=128,
  block_dim_limit_x=2**31 - 1,
  block_dim_limit_y=2**16 - 1,
  block_dim_limit_z=2**16 - 1,
  thread_dim_limit_x=1024,
  thread_dim_limit_y=1024,
  thread_dim_limit_z=64,
  l2_cache_size=50 << 20,
  clock_rate_ghz=1.98,
  device_address_bits=64,
)
_VERSIONS = dict(
  driver_version='12.8.0',
  runtime_version='12.8.0',
  compile_time_toolkit_version='12.8.0',
  dnn_version='9.8.0',
)
_CAPABILITIES = {'h100': (9, 0), 'h200': (9, 0)}


def text(chip: Chip) -> str:
  """A GpuTargetConfigProto of one of the Hopper cards, as text."""
  (name,) = (key for key, value in CHIPS.items() if value == chip)
  major, minor = _CAPABILITIES[name]
  numbers = _HOPPER | dict(
    memory_bandwidth=int(chip.memory_bytes_per_second),
    device_memory_size=int(chip.memory_bytes),
  )
  strings = _VERSIONS | dict(
    name=chip.device_kind,
    device_vendor='NVIDIA Corporation',
    platform_version=f'Compute Capability {major}.{minor}a',
  )
  fields = [f'{key}: {value}' for key, value in numbers.items()]
  fields += [f'{key}: "{value}"' for key, value in strings.items()]
  fields.append(
    f'cuda_compute_capability {{ major: {major} minor: {minor}'
    ' feature_extension: ACCELERATED_FEATURES }'
  )
  body = '\n'.join(f'  {field}' for field in fields)
  return (
    f'gpu_device_info {{\n{body}\n}}\nplatform_name: "CUDA"\n'
    'dnn_version_info { major: 9 minor: 8 patch: 0 }\n'
    f'device_description_str: "{chip.device_kind}"\n'
  )
