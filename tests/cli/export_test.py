"""The command `export`, and commands on the folder that it writes."""

import json
import logging
import pathlib
import re
import shutil

import pytest

import abstractinator
from abstractinator.cli.main import main
from abstractinator.runs import exported
from abstractinator.runs import workdir as workdirs
from abstractinator.training import report
from abstractinator.training.metric_writer import MetricWriter
from tests.helpers import model_hub, tiny_run

EXAMPLE = pathlib.Path(__file__).parents[2] / 'docs' / 'example'
TEXT = b'A text, cut into words.\nA second line of \xff words\n' * 2
FIGURES = {
  'total_bits_per_byte': 3.5,
  'level0/entropy_model_bits_per_byte': 2.25,
  'level1/bytes_per_segment': 9.0,
}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  config = tiny_run.pyramid_config()
  tiny_run.save(path, config, steps=(3, 5))
  workdirs.claim(str(path), config)
  with MetricWriter(str(path)) as writer:
    before = {f'eval/{k}': 2 * x for k, x in FIGURES.items()}
    writer.write_scalars(3, before)
    writer.write_scalars(3, {'perf/step_seconds': 8.0})
    train = {'train/total_bits_per_byte': 1.0, 'perf/step_seconds': 18.0}
    writer.write_scalars(5, train)
    writer.write_scalars(5, {f'eval/{k}': x for k, x in FIGURES.items()})
  return str(path)


@pytest.fixture(scope='module')
def folder(workdir, tmp_path_factory):
  path = tmp_path_factory.mktemp('exported') / 'model'
  assert main(['export', workdir, str(path)]) == 0
  logging.disable(logging.NOTSET)
  return path


def assert_same(commands, workdir, folder, tmp_path, monkeypatch, capsys):
  """Runs commands on a run and on what was exported from it.

  Args:
    commands: Command lines, with RUN for the model and OUT for a file.
    workdir: Directory of the run.
    folder: Directory of the exported model.
    tmp_path: Directory to run them in.
    monkeypatch: The fixture.
    capsys: The fixture capsysbinary.
  """
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'text').write_bytes(TEXT)
  for command in commands:
    found = []
    for source in (workdir, folder):
      # The page of `view` has the name of the model.
      shutil.rmtree('model', ignore_errors=True)
      shutil.copytree(source, 'model')
      args = command.replace('RUN', 'model').replace('OUT', 'out').split()
      assert main([*args, *['--force'] * ('OUT' in command)]) == 0, command
      file = re.search(r'OUT\.\w+', command)
      content = (tmp_path / file[0].lower()).read_bytes() if file else None
      found.append((*capsys.readouterr(), content))
    assert found[0] == found[1], command
    assert found[0][0]


def test_figures_texts_and_codes_are_those_of_the_run(
  tmp_path, monkeypatch, capsysbinary
):
  workdir, folder = tmp_path / 'run', tmp_path / 'exported'
  tiny_run.save(workdir, tiny_run.config())
  assert main(['export', str(workdir), str(folder)]) == 0
  capsysbinary.readouterr()
  commands = (
    'encode RUN text --out=OUT.npz',
    'decode RUN out.npz',
    'evaluate RUN --data=text --batch_size=2 --no_decode --json',
  )
  assert_same(commands, workdir, folder, tmp_path, monkeypatch, capsysbinary)


@pytest.mark.nightly
def test_every_command_reads_an_exported_model(
  workdir, folder, tmp_path, monkeypatch, capsysbinary
):
  commands = (
    'segment RUN text --json',
    'reconstruct RUN text --json',
    'generate RUN --prompt=ab --max_bytes=9 --temperature=0.9 --json',
    'encode RUN text --out=OUT.npz',
    'encode RUN text --level=0 --json',
    'decode RUN out.npz',
    'view RUN text --html=OUT.html',
    'evaluate RUN --data=text --batch_size=2 --json',
    'compress RUN text OUT.small',
    'compress RUN text OUT.hierarchy --model=hierarchy',
    'decompress RUN out.small OUT.text',
  )
  assert_same(commands, workdir, folder, tmp_path, monkeypatch, capsysbinary)


def test_the_card_has_data_sizes_figures_and_commands(workdir, folder):
  card = (folder / exported.CARD).read_text()
  pyramid = abstractinator.load(workdir)
  head, title, *_ = card.split('\n\n')
  assert head.startswith('---\nlibrary_name: abstractinator\n')
  assert title == '# model'
  rows = dict(re.findall(r'^\| ([^|]+) \| ([^|]+) \|', card, flags=re.M))
  assert rows['all'] == f'{pyramid.num_parameters:,}'
  parts = ('level_0', 'level_1', 'top_lm')
  counts = [int(rows[part].replace(',', '')) for part in parts]
  assert sum(counts) == pyramid.num_parameters
  assert rows['total'] == '3.500 bits/byte'
  assert rows['level0: entropy model'] == '2.250 bits/byte'
  assert rows['level1: length of segments'] == '9.00 bytes/segment'
  assert "Trained on: Python's standard library" in card
  assert 'after 5 steps' in card
  for command in report.next_commands('DIR', pyramid.config):
    assert f'    {command}\n' in card
  assert "abstractinator.load('DIR')" in card


def test_compare_finds_the_figures_of_the_run(workdir, folder, capsys):
  assert main(['compare', workdir, str(folder), '--json']) == 0
  run, model = json.loads(capsys.readouterr().out)
  assert (run.pop('run'), model.pop('run')) == (workdir, str(folder))
  assert run == model
  assert run['minutes'] == 1.0
  assert run['total_bits_per_byte'] == 3.5


def test_a_rounded_model_says_so(workdir, folder, tmp_path, capsys):
  out = tmp_path / 'rounded'
  assert main(['export', workdir, str(out), '--dtype=bfloat16']) == 0
  size = sum(x.stat().st_size for x in out.iterdir())
  assert size < 0.7 * sum(x.stat().st_size for x in folder.iterdir())
  told = capsys.readouterr().out
  assert told == f'{out}: step 5, {size / 1e6:.2f} MB\n'
  card = (out / exported.CARD).read_text()
  assert 'as bfloat16' in card
  assert 'before parameters were rounded' in card
  assert 'rounded' not in (folder / exported.CARD).read_text()
  # An exported model is a source like any other.
  again = tmp_path / 'again'
  assert main(['export', str(out), str(again)]) == 0
  card = card.replace('# rounded', '# again')
  assert (again / exported.CARD).read_text() == card
  pyramid = abstractinator.load(str(again))
  assert pyramid.fingerprint() == abstractinator.load(str(out)).fingerprint()
  assert (pyramid.step, pyramid.workdir) == (5, str(again))


def test_nothing_is_replaced_unasked(workdir, folder, tmp_path, capsys):
  (tmp_path / 'kept').write_text('kept')
  for directory, message in (
    (str(tmp_path), 'is not empty, allowed: an empty or new directory'),
    (workdir, 'is not empty, allowed'),
    (str(tmp_path / 'kept'), 'Not a directory'),
  ):
    message = 'holds a run' if directory == workdir else message
    assert main(['export', workdir, directory]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert directory in line
    assert message in line
  assert main(['export', workdir, workdir, '--force']) == 2
  assert 'holds a run' in capsys.readouterr().err
  # It has no checkpoint yet.
  (tmp_path / 'early' / 'tensorboard').mkdir(parents=True)
  assert main(['export', workdir, str(tmp_path / 'early'), '--force']) == 2
  assert 'holds a run' in capsys.readouterr().err
  shutil.rmtree(tmp_path / 'early')
  assert [x.name for x in tmp_path.iterdir()] == ['kept']
  assert main(['export', workdir, str(tmp_path), '--force', '--step=3']) == 0
  assert abstractinator.load(str(tmp_path)).step == 3
  assert '| total | 7.000 bits/byte |' in (tmp_path / 'README.md').read_text()
  assert (tmp_path / 'kept').read_text() == 'kept'


def test_no_run_begins_in_an_exported_model(folder, capsys):
  before = {x.name: x.read_bytes() for x in folder.iterdir()}
  assert main(['train', f'--workdir={folder}']) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert f"workdir: got '{folder}', which holds an exported model" in line
  assert {x.name: x.read_bytes() for x in folder.iterdir()} == before


def test_a_model_goes_to_the_hub_and_comes_back(
  workdir, tmp_path, monkeypatch, capsys
):
  out = str(tmp_path / 'out')
  args = ['export', workdir, out, f'--push_to_hub={model_hub.NAME}']
  with model_hub.running(monkeypatch, tmp_path / 'cache') as hub:
    assert main(args) == 0
    assert capsys.readouterr().out.endswith(f'{hub.endpoint}/someone/tiny\n')
    pyramid = abstractinator.load('hf:someone/tiny')
  (files,) = hub.commits.values()
  assert sorted(files) == sorted(exported.FILES)
  card = files[exported.CARD].decode()
  assert '# someone/tiny\n' in card
  assert "abstractinator generate hf:someone/tiny --prompt='TEXT'" in card
  assert pyramid.fingerprint() == abstractinator.load(workdir).fingerprint()
  assert json.loads(files[exported.CONFIG])['seed'] == 0


def test_the_example_is_small_and_can_be_read():
  size = sum(path.stat().st_size for path in EXAMPLE.iterdir())
  assert size <= 5 * 2**20
  pyramid = abstractinator.load(str(EXAMPLE))
  assert exported.dtype_of(str(EXAMPLE)) == 'bfloat16'
  assert f'{pyramid.num_parameters:,}' in (EXAMPLE / 'README.md').read_text()


@pytest.mark.nightly
def test_the_example_has_learned():
  text = (EXAMPLE / 'README.md').read_bytes()
  pyramid = abstractinator.load(str(EXAMPLE))
  found = pyramid.reconstruct(text)
  assert found.teacher_forced_byte_accuracy > 0.5
  ((new,),) = pyramid.generate(b'def main(', max_new_bytes=60)
  assert len(set(new)) > 5
  assert new.isascii()
