"""Fixtures for runs that build on other runs."""

import jax
import numpy as np
import pytest

from abstractinator.runs import sharding
from abstractinator.runs.state import variables_of
from configs import stage1
from tests.helpers import tiny_run
from tests.helpers.tiny_stages import make_mesh, small


@pytest.fixture(scope='module', autouse=True)
def one_device():
  """Makes meshes of one device, which compile faster than those of all."""

  def make(config, devices=None):
    return make_mesh(config, devices or jax.devices()[:1])

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, 'make_mesh', make)
    yield


@pytest.fixture(scope='session')
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp('corpus')
  words = 'the quick brown fox jumps over the lazy dog and so on'.split()
  rng = np.random.default_rng(0)
  for i in range(20):
    (folder / f'{i}.txt').write_text(
      ' '.join(rng.choice(words) for _ in range(99))
    )
  return folder


@pytest.fixture(scope='session')
def base(corpus, tmp_path_factory):
  """Directory of a run, and its parameters and collections."""
  workdir = tmp_path_factory.mktemp('base')
  config = small(stage1.get_config(), corpus)
  tiny_run.save(workdir, config)
  return workdir, variables_of(tiny_run.random_state(config, seed=3))
