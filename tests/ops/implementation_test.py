import pytest

from abstractinator.ops.implementation import resolve_implementation


@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_auto_goes_by_the_platform_and_names_stand_for_themselves(platform):
  assert resolve_implementation('auto', platform) == 'xla'
  assert resolve_implementation('xla', platform) == 'xla'
  assert resolve_implementation('reference', platform) == 'reference'


def test_nothing_falls_back_silently():
  with pytest.raises(ValueError, match=r"'pallas'.*auto, reference, xla"):
    resolve_implementation('pallas', 'cpu')
  with pytest.raises(ValueError, match=r"'abacus'.*cpu, gpu, tpu"):
    resolve_implementation('auto', 'abacus')


def test_choice_is_logged_once(caplog):
  resolve_implementation.cache_clear()
  with caplog.at_level('INFO'):
    for _ in range(2):
      resolve_implementation('auto', 'cpu')
  assert caplog.messages == ['implementation of the ops on cpu: xla']
