import jax
import jax.numpy as jnp
import pytest

from abstractinator.training.profile import NO_PROFILE, Profile


def run(profile, directory, steps):
  step = jax.jit(lambda x: jnp.sin(x) + 1)
  x = jnp.zeros(8)
  for i in range(steps):
    profile.before(i, str(directory))
    with jax.profiler.StepTraceAnnotation('train', step_num=i):
      x = step(x)
    profile.after(i + 1, x)


def test_a_window_is_traced_for_tensorboard(tmp_path):
  run(Profile.parse('2:4'), tmp_path, 6)
  (trace,) = tmp_path.glob('plugins/profile/*/*.xplane.pb')
  planes = jax.profiler.ProfileData.from_file(str(trace)).planes
  events = [e for plane in planes for line in plane.lines for e in line.events]
  steps = [dict(e.stats)['step_num'] for e in events if e.name == 'train']
  assert sorted(steps) == [2, 3]
  # The trace was ended: another can start.
  run(Profile(0, 1), tmp_path / 'other', 2)


def test_a_window_that_is_broken_off_is_closed(tmp_path):
  with Profile(0, 9) as profile:
    run(profile, tmp_path, 2)
  assert list(tmp_path.glob('plugins/profile/*/*.xplane.pb'))
  run(Profile(0, 1), tmp_path / 'other', 2)


def test_no_profile_leaves_nothing(tmp_path):
  run(NO_PROFILE, tmp_path, 2)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['', '5', '5:5', '7:5', 'a:b', '-1:5'])
def test_wrong_windows(text):
  with pytest.raises(ValueError, match='--profile_steps: got'):
    Profile.parse(text)


@pytest.mark.parametrize('text', ['5:15', '25:31'])
def test_a_window_outside_of_the_run(text):
  with pytest.raises(ValueError, match='allowed: within 10:30'):
    Profile.parse(text).check(10, 30)
