"""Files that one number of threads and devices wrote, read by another."""

import os
import subprocess
import sys

import pytest

from tests.helpers import xla_flags

# Writes a file under each model, or compares and reads what is there.
_SCRIPT = """
import os, pathlib, sys, zlib
count = int(sys.argv[2])
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
import jax
from abstractinator.compression import container
from abstractinator.compression.byte_model import ByteModel
from abstractinator.compression.codec import compress, decompress
from tests.helpers import tiny_hierarchy, tiny_run
assert jax.device_count() == count
# Untrained models make texts longer.
container.block = lambda raw, coded: container.FileBlock(
  container.CODED, coded, zlib.crc32(raw)
)
config = tiny_run.config()
hierarchy, variables = tiny_hierarchy.make(config)
data = b'words, and other words' * 20
for model in (ByteModel(config, variables), hierarchy):
  path = pathlib.Path(sys.argv[1], str(model.kind))
  content = compress(model, data)
  if count > 1:
    assert path.read_bytes() == content
    assert decompress(model, content) == data
  path.write_bytes(content)
"""


@pytest.mark.nightly
def test_threads_and_devices_do_not_change_a_file(tmp_path):
  for count in (1, 2):
    flag = f'--xla_force_host_platform_device_count={count}'
    env = os.environ | {
      'NPROC': str(count),
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': xla_flags.joined(flag, *xla_flags.QUICK),
    }
    subprocess.run(
      [sys.executable, '-c', _SCRIPT, str(tmp_path), str(count)],
      env=env,
      check=True,
    )
