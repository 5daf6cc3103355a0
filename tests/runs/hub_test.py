"""Exported models on a stand-in of the Hugging Face Hub."""

import pathlib
import sys

import pytest

from abstractinator.runs import exported, hub
from tests.helpers import model_hub
from tests.helpers.model_hub import NAME


@pytest.fixture
def server(monkeypatch, tmp_path):
  with model_hub.running(monkeypatch, tmp_path / 'cache') as server:
    yield server


def make_model(folder, text):
  """Writes the files of a model, and one that is no part of it."""
  folder.mkdir(exist_ok=True)
  for name in (*exported.FILES, 'notes.txt'):
    (folder / name).write_bytes(f'{name} {text}'.encode())
  return {name: (folder / name).read_bytes() for name in exported.FILES}


def read(folder):
  return {x.name: x.read_bytes() for x in pathlib.Path(folder).iterdir()}


def test_what_was_pushed_is_downloaded(server, tmp_path):
  model = tmp_path / 'model'
  first = make_model(model, 'first')
  address = hub.push(str(model), NAME)
  assert address == f'{server.endpoint}/{NAME}'
  assert list(server.commits.values()) == [first]
  assert read(hub.directory_of(f'hf:{NAME}')) == first
  second = make_model(model, 'second')
  hub.push(str(model), NAME)
  assert read(hub.directory_of(f'hf:{NAME}')) == second
  revision = next(iter(server.commits))
  assert read(hub.directory_of(f'hf:{NAME}@{revision}')) == first


def error_of(function, *args):
  with pytest.raises(ValueError) as info:
    function(*args)
  assert '\n' not in str(info.value)
  return str(info.value)


def test_what_the_hub_refuses_is_told_in_a_line(server, tmp_path, monkeypatch):
  model = tmp_path / 'model'
  make_model(model, 'first')
  message = error_of(hub.directory_of, f'hf:{NAME}')
  assert message.startswith(f'hf:{NAME}: ')
  assert 'allowed: hf:NAME of a model on the hub' in message
  assert error_of(hub.directory_of, 'hf:a/b/c').startswith('hf:a/b/c: ')
  assert error_of(hub.directory_of, 'hf:').startswith('hf:: ')
  monkeypatch.setenv('HF_TOKEN', 'hf_wrong')
  message = error_of(hub.push, str(model), NAME)
  assert message.startswith(f'{NAME}: ')
  assert f'{model} is whole' in message
  assert not server.commits


def test_the_client_is_an_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  for function, *args in ((hub.directory_of, 'hf:a/b'), (hub.push, 'x', 'a/b')):
    message = error_of(function, *args)
    assert "pip install 'abstractinator[hub]'" in message
