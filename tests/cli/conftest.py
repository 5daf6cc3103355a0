"""A run with random parameters and a text, for commands."""

import pytest

import abstractinator
from tests.helpers import tiny_run


@pytest.fixture(scope='session')
def workdir(tmp_path_factory):
  return tiny_run.saved(tmp_path_factory)


@pytest.fixture(scope='session')
def pyramid(workdir):
  return abstractinator.load(workdir)


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'text.txt'
  path.write_bytes(tiny_run.TEXT)
  return str(path)
