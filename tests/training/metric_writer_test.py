import contextlib
import io
import json
import math
import os
import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata

from abstractinator.training.metric_writer import MetricWriter


def read_jsonl(workdir):
  def refuse(name):
    raise AssertionError(f'{name} is no JSON')

  text = (workdir / 'metrics.jsonl').read_text()
  return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def read_tensorboard(workdir):
  events = EventAccumulator(
    str(workdir / 'tensorboard'),
    size_guidance={'scalars': 0, 'tensors': 0, 'histograms': 0},
  )
  return events.Reload()


def scalars(events, tag):
  return [(e.step, e.value) for e in events.Scalars(tag)]


def test_scalars(tmp_path):
  with MetricWriter(tmp_path / 'new') as writer:
    writer.write_scalars(1, {'train/loss': 2.5, 'perf/bytes': 7})
    writer.write_scalars(
      2, {'train/loss': jnp.float32(1.5), 'perf/bytes': np.float64(8)}
    )
  assert read_jsonl(tmp_path / 'new') == [
    {'step': 1, 'train/loss': 2.5, 'perf/bytes': 7.0},
    {'step': 2, 'train/loss': 1.5, 'perf/bytes': 8.0},
  ]
  events = read_tensorboard(tmp_path / 'new')
  assert scalars(events, 'train/loss') == [(1, 2.5), (2, 1.5)]
  assert scalars(events, 'perf/bytes') == [(1, 7.0), (2, 8.0)]


def test_a_scalar_has_a_description(tmp_path):
  tags = ('train/level0/stage1/codebook_perplexity', 'eval/commitment')
  with MetricWriter(tmp_path) as writer:
    for step in (1, 2):
      writer.write_scalars(step, dict.fromkeys((*tags, 'new'), 1.0))
  events = read_tensorboard(tmp_path)
  abouts = [events.SummaryMetadata(tag).summary_description for tag in tags]
  assert abouts == [
    'number of codes in effective use, 2 to the power of the entropy of their'
    ' frequencies (codes); mean of the training steps since the last line of'
    ' the log',
    'mean distance of segments to their codes (squared distance); held-out'
    ' text',
  ]
  # It is written once.
  (path,) = (tmp_path / 'tensorboard').iterdir()
  assert path.read_bytes().count(b'codes in effective use') == 1


@pytest.mark.parametrize(
  ('names', 'titles'),
  [
    (
      ['entropy_model_bits_per_byte', 'bytes_per_segment'],
      ['entropy model, bits/byte'],
    ),
    (
      [
        *('level0/expander_bits_per_byte', 'level1/expander_bits_per_byte'),
        *('level0/entropy_model_bits_per_byte', 'total_bits_per_byte'),
        *('free_running_byte_accuracy', 'top_lm_code_bits_per_byte'),
        *('top_lm_code_accuracy', 'loss_total'),
      ],
      [
        *('total, bits/byte', 'entropy model, bits/byte'),
        *('expander, given codes, bits/byte', 'codes, bits/byte'),
        'bytes right, from codes alone, fraction',
      ],
    ),
    (
      ['top_lm_code_accuracy', 'top_lm_code_bits_per_code'],
      ['top LM, bits/code', 'codes right, fraction'],
    ),
  ],
)
def test_what_matters_most_has_charts(tmp_path, names, titles):
  with MetricWriter(tmp_path) as writer:
    writer.write_layout([f'eval/{name}' for name in names])
  (event,) = read_tensorboard(tmp_path).Tensors('custom_scalars__config__')
  layout = Layout.FromString(event.tensor_proto.string_val[0])
  (category,) = layout.category
  assert [chart.title for chart in category.chart] == titles
  for chart in category.chart:
    (pattern,) = chart.multiline.tag
    shown = [x for x in names if re.match(pattern, f'eval/{x}')]
    assert shown
    assert [x for x in names if re.match(pattern, f'train/{x}')] == shown
    assert not re.match(pattern, f'eval/{shown[0]}_true_codes')


def test_settings_are_those_of_the_run_and_not_of_a_run_of_its_own(tmp_path):
  settings = {'a.b': None, 'seed': 7, 'kind': 'vq', 'alarms': True}
  with MetricWriter(tmp_path) as writer:
    writer.write_settings(settings)
    writer.flush()
    assert '_hparams_/session_end_info' not in hparams(tmp_path)
  found = hparams(tmp_path)
  start = metadata.parse_session_start_info_plugin_data(
    found['_hparams_/session_start_info']
  )
  kinds = {k: x.WhichOneof('kind') for k, x in start.hparams.items()}
  assert kinds == {
    'a.b': 'string_value',
    'seed': 'number_value',
    'kind': 'string_value',
    'alarms': 'bool_value',
  }
  assert start.hparams['a.b'].string_value == 'None'
  assert start.hparams['seed'].number_value == 7
  # TensorBoard takes the settings of all runs if none has a list of them.
  assert set(found) == {
    '_hparams_/session_start_info',
    '_hparams_/session_end_info',
  }


def hparams(workdir):
  return read_tensorboard(workdir).PluginTagToContent('hparams')


def test_a_run_that_fails_has_no_end(tmp_path):
  with contextlib.suppress(KeyError), MetricWriter(tmp_path) as writer:
    writer.write_settings({'seed': 7})
    raise KeyError
  assert set(hparams(tmp_path)) == {'_hparams_/session_start_info'}


def test_values_that_are_not_finite(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write_scalars(1, {'a': math.nan, 'b': math.inf, 'c': -math.inf})
  assert read_jsonl(tmp_path) == [{'step': 1, 'a': None, 'b': None, 'c': None}]
  (event,) = read_tensorboard(tmp_path).Scalars('a')
  assert math.isnan(event.value)


def test_histogram(tmp_path):
  counts = np.array([0, 3, 0, 10**9, 1], np.int64)
  with MetricWriter(tmp_path) as writer:
    writer.write_histogram(4, 'vq/usage', counts)
    writer.write_histogram(5, 'vq/usage', jnp.zeros(5))
  first, second = read_tensorboard(tmp_path).Histograms('vq/usage')
  value = first.histogram_value
  assert first.step == 4
  assert (value.min, value.max, value.num) == (0, 4, counts.sum())
  assert value.sum == 3 * 1 + 10**9 * 3 + 4
  assert value.sum_squares == 3 * 1 + 10**9 * 9 + 16
  assert value.bucket_limit == [0.5, 1.5, 2.5, 3.5, 4.5]
  assert value.bucket == counts.tolist()
  assert second.histogram_value.num == 0


def test_histogram_of_values_between_edges(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write_histogram(4, 'bits', np.array([2, 1]), np.array([0, 0.5, 1]))
  (event,) = read_tensorboard(tmp_path).Histograms('bits')
  value = event.histogram_value
  assert (value.min, value.max, value.num) == (0.25, 0.75, 3)
  assert (value.sum, value.sum_squares) == (1.25, 2 * 0.0625 + 0.5625)
  assert (value.bucket_limit, value.bucket) == ([0.5, 1.0], [2, 1])


def test_image(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
  with MetricWriter(tmp_path) as writer:
    writer.write_image(4, 'picture', pixels)
  (event,) = read_tensorboard(tmp_path).Images('picture')
  assert (event.step, event.height, event.width) == (4, 3, 5)
  with Image.open(io.BytesIO(event.encoded_image_string)) as image:
    assert image.format == 'PNG'
    np.testing.assert_array_equal(np.asarray(image), pixels)


def test_text(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write_text(3, 'samples', '**bold**\n\n| a | b |')
  (event,) = read_tensorboard(tmp_path).Tensors('samples/text_summary')
  assert event.step == 3
  assert event.tensor_proto.string_val[0] == b'**bold**\n\n| a | b |'


def write_steps(workdir, steps, offset, **kwargs):
  with MetricWriter(workdir, **kwargs) as writer:
    for step in steps:
      writer.write_scalars(step, {'loss': step + offset})


def test_resumption_drops_the_steps_done_again(tmp_path):
  write_steps(tmp_path, [10, 20, 30, 40], 0.0)
  # The run was killed in the middle of a line.
  with open(tmp_path / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 50, "lo')
  write_steps(tmp_path, [30, 40], 0.5, resume_step=20)
  values = [(10, 10.0), (20, 20.0), (30, 30.5), (40, 40.5)]
  assert read_jsonl(tmp_path) == [{'step': s, 'loss': v} for s, v in values]
  assert scalars(read_tensorboard(tmp_path), 'loss') == values
  # Values of the step that the run resumes from are kept.
  write_steps(tmp_path, [50], 0.0, resume_step=40)
  assert scalars(read_tensorboard(tmp_path), 'loss') == [*values, (50, 50.0)]


def test_half_a_line_of_an_early_step_is_dropped(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "a": 2}\n{"step": 2, "a')
  write_steps(tmp_path, [9], 0.0, resume_step=8)
  assert read_jsonl(tmp_path) == [
    {'step': 1, 'a': 2},
    {'step': 9, 'loss': 9.0},
  ]


def test_new_run_drops_an_attempt_without_checkpoint(tmp_path):
  write_steps(tmp_path, [1, 2], 0.0)
  write_steps(tmp_path, [1], 0.5)
  assert read_jsonl(tmp_path) == [{'step': 1, 'loss': 1.5}]
  assert scalars(read_tensorboard(tmp_path), 'loss') == [(1, 1.5)]


def test_a_damaged_line_is_refused_and_kept(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n[1]\n{"step": 3}\n')
  with pytest.raises(ValueError, match=f'{path}:2: got '):
    MetricWriter(tmp_path, resume_step=5)
  assert path.read_text() == '{"step": 1}\n[1]\n{"step": 3}\n'


def test_lines_are_whole_before_the_file_is_closed(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write_scalars(1, {'loss': 1.0})
    assert read_jsonl(tmp_path) == [{'step': 1, 'loss': 1.0}]


def test_other_processes_write_nothing(tmp_path):
  with MetricWriter(tmp_path / 'run', enabled=False) as writer:
    writer.write_scalars(1, {'loss': 1.0})
    writer.write_histogram(1, 'usage', np.ones(3))
    writer.write_image(1, 'image', np.ones((1, 1, 3), np.uint8))
    writer.write_text(1, 'text', 'text')
    writer.flush()
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('full', ['metrics.jsonl', 'events'])
def test_a_full_disk_is_told_at_the_next_flush(tmp_path, full):
  """`/dev/full` refuses what is written, as a full disk does."""
  writer = MetricWriter(tmp_path)
  writer.write_scalars(1, {'loss': 1.0})
  writer.flush()
  (events,) = (tmp_path / 'tensorboard').iterdir()
  path = events if full == 'events' else tmp_path / full
  with open('/dev/full', 'wb') as device:
    os.dup2(device.fileno(), descriptor(path))
  message = error_of(lambda: log_many(writer, range(2, 30)))
  assert message == f'{path}: cannot be written (No space left on device)'
  # What could not be written is no reason to wait, or to stay open.
  message = error_of(writer.close)
  assert message.endswith('(No space left on device)')
  assert not [x for x in os.listdir('/proc/self/fd') if is_full(x)]
  # After room is made the same run goes on.
  write_steps(tmp_path, [2], 0.5, resume_step=1)
  assert read_jsonl(tmp_path)[0]['step'] == 1
  assert scalars(read_tensorboard(tmp_path), 'loss') == [(1, 1.0), (2, 2.5)]


def log_many(writer, steps):
  for step in steps:
    writer.write_scalars(step, {'loss': step})
    writer.write_text(step, 'text', 'x' * 9000)
    writer.flush()


def error_of(function):
  with pytest.raises(OSError) as info:
    function()
  return str(info.value)


def descriptor(path):
  """Returns the open file descriptor of a path."""
  (found,) = [x for x in os.listdir('/proc/self/fd') if is_open(x, path)]
  return int(found)


def is_open(number, path):
  try:
    return os.readlink(f'/proc/self/fd/{number}') == str(path)
  except OSError:
    return False


def is_full(number):
  return is_open(number, '/dev/full')
