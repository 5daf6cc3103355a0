"""What tests of compression share."""

import pytest

from abstractinator.compression import hierarchy_model
from tests.helpers.tiny_hierarchy import ROW


@pytest.fixture(autouse=True)
def _small(monkeypatch):
  """Rows of hierarchies, and one of them at a time."""
  monkeypatch.setattr(hierarchy_model, '_ROW_IDS', ROW)
  monkeypatch.setattr(hierarchy_model, '_BATCH_IDS', ROW)
