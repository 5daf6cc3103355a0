"""A run with random parameters and a text, for commands."""

import pytest

import abstractinator
from tests.helpers import tiny_run


@pytest.fixture(scope='session')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  tiny_run.save(path, tiny_run.config())
  return str(path)


@pytest.fixture(scope='session')
def pyramid(workdir):
  return abstractinator.load(workdir)


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'text.txt'
  path.write_bytes(tiny_run.TEXT)
  return str(path)
