"""Dictionaries that are counted before the first step of a run."""

import collections
import json

import jax
import numpy as np
import pytest

from abstractinator.config import RunConfig
from abstractinator.inference import load
from abstractinator.runs import sharding
from abstractinator.runs.checkpointer import Checkpointer
from abstractinator.runs.sharding import make_mesh, shard_batch
from abstractinator.runs.state import variables_of
from abstractinator.training import dictionary
from abstractinator.training.loop import Run
from abstractinator.training.program import make_program
from abstractinator.types import EOS_ID, Batch
from configs import default, tiny
from tests.helpers import tiny_run

SIZE = 64
TEXT = 'the rain in spain stays mainly in the plain; so they say to {}. '


def config(folder, **level_edits):
  """Returns a config of a small run, on documents that differ a little."""
  for number in range(6):
    text = ''.join(TEXT.format(chr(97 + i % 26) * 9) for i in range(number, 20))
    (folder / f'{number}.txt').write_text(text)
  values = tiny.get_config()
  values.data.train = f'{folder}/*.txt'
  values.data.sequence_length, values.data.batch_size = SIZE, 8
  values.data.validation_fraction = 0.2
  values.max_steps, values.num_epochs = 4, 1000.0
  values.log_interval = values.checkpoint_interval = 2
  values.optimizer.warmup_steps = 1
  (level,) = values.model.levels
  tiny.make_small(level, d_model=16)
  level.quantizer.kind = 'dictionary'
  level.quantizer.codebook_size = 12
  level.segmentation.capacity_length = 1.0
  level.segmentation.target_length = 6.0
  level.update_from_flattened_dict(level_edits)
  values.model.top_lm = default.get_top_lm()
  values.model.top_lm.d_model, values.model.top_lm.stack.num_heads = 16, 2
  return RunConfig.from_dict(json.loads(values.to_json_best_effort()))


def level_of(variables, collection):
  return variables[collection]['level_0']['compressor']


def table_of(variables):
  return np.asarray(level_of(variables, 'vq')['quantizer']['table'])


def segments_of(table):
  return {tuple(row[row >= 0].tolist()) for row in table if row[0] < 2**31 - 1}


def counted(model, variables, batches):
  """Counts the segments of batches one by one."""
  counts = collections.Counter()
  divide = jax.jit(lambda *args: model.apply(*args, method='compress_all'))
  for batch in batches:
    index_BS = np.asarray(divide(variables, batch).levels[0].segments.index_BS)
    for ids_S, index_S in zip(np.asarray(batch.ids_BS), index_BS, strict=True):
      for number in range(index_S.max() + 1):
        counts[tuple(ids_S[index_S == number].tolist())] += 1
  return counts


def assert_commonest(table, counts):
  found = segments_of(table)
  assert len(found) == len(table)
  least = min(counts[ids] for ids in found)
  assert least >= max(counts[ids] for ids in counts if ids not in found)
  assert least > 0
  rows = [tuple(row) for row in table.tolist()]
  assert rows == sorted(rows)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run, its first state, and its directory with the state of step 1."""
  folder = tmp_path_factory.mktemp('dictionary')
  workdir = f'{folder}/run'
  with pytest.MonkeyPatch.context() as patch:
    # It compiles faster than for all devices, on which the last test counts.
    patch.setattr(
      sharding, 'make_mesh', lambda c: make_mesh(c, jax.devices()[:1])
    )
    made = Run(config(folder), workdir)
    state = made.start()
    before = jax.device_get(state)
    batches = made._train_batches(0)
    with jax.set_mesh(made._mesh), Checkpointer(workdir, 1) as saver:
      state, _ = made._step(state, shard_batch(next(batches), made._mesh))
      position = {**batches.get_state(), **made._data_identity, 'metrics': None}
      saver.save(1, state, position, made.config.to_dict())
    yield made, before, workdir


def test_the_commonest_segments_of_the_training_text_have_codes(run):
  made, before, _ = run
  variables = variables_of(before)
  batches = [
    Batch(
      *(np.stack([row[k] for row in rows]) for k in ('ids', 'document', 'row'))
    )
    for rows in ([made._train_rows[i] for i in range(len(made._train_rows))],)
  ]
  assert_commonest(
    table_of(variables), counted(made._program.model, variables, batches)
  )
  # The threshold has settled: segments have the wanted length.
  counts = counted(made._program.model, variables, batches)
  mean = sum(map(len, counts.elements())) / counts.total()
  assert abs(mean - 6.0) < 0.3


def test_a_run_keeps_its_dictionary_when_it_resumes(run, monkeypatch):
  made, before, workdir = run
  monkeypatch.setattr(dictionary, 'fill', None)
  again = jax.device_get(Run(made.config, workdir).start())
  assert int(again.step) == 1
  old, new = variables_of(before), variables_of(again)
  np.testing.assert_array_equal(table_of(old), table_of(new))
  # Its entries learn: from the expander, and here from the top LM alone.
  entries = [
    level_of(x, 'params')['quantizer']['codebook']['embedding']
    for x in (old, new)
  ]
  moved = np.abs(entries[1] - entries[0]).max(axis=1)
  assert (moved > 1e-4).sum() > 6


def test_what_was_trained_is_used_like_any_other_run(run):
  _, before, workdir = run
  pyramid = load(workdir)
  rows = table_of(variables_of(before)).tolist()
  code_of = {tuple(x for x in row if x >= 0): i for i, row in enumerate(rows)}
  data = TEXT.format('aaaaaaaaa').encode()
  segments = [tuple(x) for x in pyramid.segment(data)]
  codes = pyramid.encode(data).codes_N.tolist()
  # EOS lies in the last segment, or follows it.
  want = [code_of.get(ids, len(rows)) for ids in segments]
  assert codes[: len(want) - 1] == want[:-1]
  assert len(rows) in codes[:-1]
  last = (*segments[-1], EOS_ID)
  assert codes[len(want) - 1 :] in (
    [code_of.get(last, len(rows))],
    [want[-1], code_of.get((EOS_ID,), len(rows))],
  )


def test_a_frozen_entropy_model_divides_the_text_that_is_counted(tmp_path):
  c = config(
    tmp_path,
    freeze_entropy_model=True,
    **{'segmentation.rule': 'entropy_threshold', 'segmentation.threshold': 8.0},
  )
  model = make_program(c, 'cpu', 1).model
  rng = np.random.default_rng(0)
  ids = rng.integers(97, 101, (3, 8, SIZE)).astype(np.int32)
  zeros = np.zeros_like(ids[0])
  batches = [Batch(x, zeros, zeros[:, 0]) for x in ids]
  mesh = make_mesh(c.mesh)
  state, line = dictionary.fill(
    tiny_run.random_state(c, 0), model, mesh, batches
  )
  variables = jax.device_get(variables_of(state))
  counts = counted(model, variables, batches)
  assert_commonest(table_of(variables), counts)
  assert f'11 of {len(counts)} different segments have a code' in line
  assert f'of the {counts.total():,} that were counted' in line
  assert len({len(ids) for ids in counts}) > 3
