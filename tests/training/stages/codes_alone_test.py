"""Training of a top LM on codes alone."""

import functools

import jax
import numpy as np
import pytest

from abstractinator import inference
from abstractinator.cli.main import main
from abstractinator.codes import corpus as corpus_lib
from abstractinator.data.documents import Documents, MemoryDocument
from abstractinator.data.packing import PackedRows
from abstractinator.decoding.pyramid import make_model
from abstractinator.objective import losses
from abstractinator.runs.state import variables_of
from abstractinator.training import open_rows
from abstractinator.training.loop import Run
from abstractinator.types import PAD_ID, Batch, bytes_to_ids
from configs import stage1, stage2
from tests.helpers import tiny_run
from tests.helpers.tiny_stages import assert_top_lm_alone_moved, small, train


def codes_config(base, codes, edit=lambda values: None):
  """Config of a top LM that learns from a directory of codes."""

  def edit_all(values):
    values.objective, values.load_base_from = 'top_lm', str(base)
    values.model.top_lm.expand = False
    values.data.train = str(codes)
    edit(values)

  return small(stage2.get_config(), codes, edit_all)


@pytest.fixture(scope='module')
def codes(base, corpus, tmp_path_factory):
  directory = tmp_path_factory.mktemp('codes') / 'out'
  args = [f'--data={corpus}/*.txt', f'--out={directory}', '--format=npz']
  assert main(['encode', str(base[0]), *args, '--shard_bytes=4000']) == 0
  return directory


@pytest.mark.nightly
def test_a_top_lm_learns_from_codes_alone(base, codes, tmp_path, capsys):
  workdir, before = base
  config = codes_config(workdir, codes)
  first, last, summary, run = train(config, tmp_path / 'run')
  assert_top_lm_alone_moved(before, first, last)
  # All texts are trained on or held out.
  rows = [run._train_rows, run._validation_rows]
  texts = [x for shard in corpus_lib.read_corpus(str(codes)) for x in shard]
  assert len(texts) == sum(len(x.documents) for x in rows) == 20
  assert 0 < summary.whole['top_lm_code_bits_per_code'] < 5
  # The checkpoint holds a whole model, which can continue texts.
  level = inference.load(str(tmp_path / 'run'))
  ((text,),) = level.generate(b'the', max_new_bytes=4)
  assert isinstance(text, bytes)
  assert main(['evaluate', str(tmp_path / 'run')]) == 2
  assert '--data: got none' in capsys.readouterr().err


def test_codes_alone_cost_what_they_do_in_a_pyramid(base, codes, tmp_path):
  config = codes_config(base[0], codes)
  state = tiny_run.random_state(config, seed=1)
  model, variables = make_model(config, 'cpu'), variables_of(state)
  texts = [b'the lazy dog', b'jumps', b'over and over again, so']
  ids_BS = np.full((3, 32), PAD_ID, np.int32)
  for row, text in enumerate(texts):
    ids_BS[row, : len(text) + 1] = bytes_to_ids(text)
  document_BS = np.where(ids_BS == PAD_ID, -1, 0)
  batch = Batch(ids_BS, document_BS, np.arange(3))
  output = jax.jit(model.apply)(variables, batch)
  expected = losses.top_lm_terms(output.top_lm, output.top_codes)
  is_code_BU = np.asarray(output.top_codes.document_BP) >= 0
  codes_BU = np.asarray(output.top_codes.codes_BP)
  documents = []
  for codes_U, is_code_U in zip(codes_BU, is_code_BU, strict=True):
    codes_N = codes_U[is_code_U].astype(np.int32)
    # The last code of a text has the number of codes added.
    codes_N[-1] += 16
    documents.append(MemoryDocument('text', codes_N))
  # The codes of all texts, one after the other in one row.
  (row,) = PackedRows(
    [Documents(documents)],
    sequence_length=int(is_code_BU.sum()) + 3,
    max_documents=3,
    has_eos=False,
  )
  row = Batch(row['ids'][None], row['document'][None], row['row'][None])
  predicted = jax.jit(functools.partial(model.apply, method='predict_codes'))(
    variables, row
  )
  found = losses.top_lm_terms(predicted.top_lm, predicted.top_codes)
  assert expected['top_lm_code'] > 1
  assert expected['top_lm_end'] > 1
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_codes_of_another_model_are_refused(base, codes, corpus, tmp_path):
  # `tiny_run.save` draws other parameters for another step.
  config = small(stage1.get_config(), corpus)
  tiny_run.save(tmp_path / 'other', config, steps=(4,))
  config = codes_config(tmp_path / 'other', codes)
  with pytest.raises(ValueError, match=r'data\.train: got .* codes of model'):
    Run(config, str(tmp_path / 'run'))

  def thaw(values):
    values.model.levels[0].freeze = False
    values.load_base_from = None

  with pytest.raises(ValueError, match="objective: got 'top_lm', allowed"):
    codes_config(base[0], codes, thaw)
  config = codes_config(base[0], corpus)
  with pytest.raises(ValueError, match=r'has no manifest\.json'):
    Run(config, str(tmp_path / 'run'))


def test_codes_that_are_held_out_are_not_trained_on(base, codes):
  def edit(values):
    values.data.validation = str(codes)

  with pytest.raises(ValueError, match=r'data\.validation: 20 of its 20'):
    open_rows.open_code_rows(codes_config(base[0], codes, edit))
