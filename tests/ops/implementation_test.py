import dataclasses
import functools

import pytest

from abstractinator.config import ImplementationConfig
from abstractinator.ops.implementation import (
  Implementations,
  resolve_implementations,
)

AUTO = ImplementationConfig.everywhere('auto')
OPS = ('attention', 'segment_pool', 'segment_cross', 'nearest_code')


def resolve(platform, **settings):
  return resolve_implementations(
    dataclasses.replace(AUTO, **settings), platform
  )


@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_auto_goes_by_the_platform_and_names_stand_for_themselves(platform):
  auto = dataclasses.asdict(resolve(platform))
  assert 'auto' not in auto.values()
  assert 'reference' not in auto.values()
  for op in OPS:
    named = dataclasses.asdict(resolve(platform, **{op: 'reference'}))
    assert named == auto | {op: 'reference'}


def test_the_processor_computes_by_xla():
  assert resolve('cpu') == Implementations(
    attention='xla',
    segment_pool='xla',
    segment_cross='gather',
    nearest_code='xla',
    remat='none',
    scan_layers=False,
  )
  xla = ImplementationConfig.everywhere('xla')
  assert resolve_implementations(xla, 'cpu') == resolve('cpu')


def test_how_stacks_run_is_as_set():
  found = resolve('tpu', remat='dots', scan_layers=True)
  assert (found.remat, found.scan_layers) == ('dots', True)
  assert str(found).endswith('nearest_code xla, remat dots, scan_layers True')


@pytest.mark.parametrize('op', ['attention', 'segment_pool'])
def test_there_is_a_kernel_for_each_platform(op):
  for platform, name in (('gpu', 'pallas_triton'), ('tpu', 'pallas_tpu')):
    assert getattr(resolve(platform, **{op: 'pallas'}), op) == name


@pytest.mark.parametrize(
  ('platform', 'op', 'name', 'allowed'),
  [
    ('cpu', 'attention', 'pallas', 'auto, reference, xla, pallas_interpret'),
    ('cpu', 'attention', 'cudnn', 'auto, reference, xla, pallas_interpret'),
    ('tpu', 'attention', 'mosaic_gpu', 'auto, .*pallas, pallas_interpret'),
    ('tpu', 'attention', 'cudnn', 'auto, .*pallas, pallas_interpret'),
    ('gpu', 'attention', 'halo', 'auto, .*pallas_interpret, mosaic_gpu, cudnn'),
    ('cpu', 'segment_pool', 'pallas', 'auto, reference, xla, .*interpret'),
    ('cpu', 'segment_cross', 'xla', 'auto, reference, gather, halo'),
    ('tpu', 'nearest_code', 'pallas', 'auto, reference, xla'),
  ],
)
def test_what_a_platform_cannot_take_is_an_error(platform, op, name, allowed):
  message = rf"model\.implementation\.{op}: got '{name}', allowed on {platform}"
  with pytest.raises(ValueError, match=rf'{message}: {allowed}$'):
    resolve(platform, **{op: name})


def test_an_unknown_platform_is_an_error():
  with pytest.raises(ValueError, match=r"'abacus'.*cpu, gpu, tpu"):
    resolve('abacus', attention='reference')


def test_a_setting_is_one_of_those_of_its_op():
  read = functools.partial(
    ImplementationConfig.from_dict, path='model.implementation'
  )
  auto = AUTO.to_dict()
  assert read(auto) == AUTO
  with pytest.raises(
    ValueError,
    match=r"model\.implementation\.segment_cross: got 'xla', allowed: auto",
  ):
    read(auto | {'segment_cross': 'xla'})
  with pytest.raises(
    ValueError, match=r'implementation\.remat: got .all.*none, dots, blocks'
  ):
    read(auto | {'remat': 'all'})


def test_the_choice_is_logged_once(caplog):
  resolve_implementations.cache_clear()
  with caplog.at_level('INFO'):
    for _ in range(2):
      resolve('cpu')
  assert caplog.messages == [
    'implementations on cpu: attention xla, segment_pool xla, segment_cross'
    ' gather, nearest_code xla'
  ]
