"""What `abstractinator plan` says of a config that is none."""

import pytest

from abstractinator.commands import plan


@pytest.mark.parametrize(
  ('name', 'content', 'reason'),
  [
    ('README.md', 'Text', 'allowed: a Python file'),
    ('a.py', 'def get_config(:', 'SyntaxError'),
    ('a.py', 'x = 1', 'AttributeError'),
    ('a.py', 'def get_config():\n  return 1', 'AttributeError'),
    ('a.py', 'import nowhere', 'ModuleNotFoundError'),
  ],
)
def test_a_config_that_is_none(name, content, reason, tmp_path):
  (tmp_path / name).write_text(content)
  with pytest.raises(ValueError, match=rf'^--config: .*{name}') as error:
    plan._load(str(tmp_path / name), [])
  assert reason in str(error.value)
  assert '\n' not in str(error.value)
