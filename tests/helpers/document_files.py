"""Files of documents, and the names and contents of opened documents."""


def write(root, **files):
  """Writes files by name, with '__' for '/' and '_' for '.'."""
  for name, content in files.items():
    path = root / name.replace('__', '/').replace('_', '.')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return root


def names(documents):
  return [document.name for document in documents]


def contents(documents):
  return [document.read(0, document.length) for document in documents]
