"""Exported models on the Hugging Face Hub: `hf:NAME` or `hf:NAME@REVISION`."""

from abstractinator.data.documents import one_line
from abstractinator.data.extras import import_extra
from abstractinator.runs import workdir

PREFIX = 'hf:'


def directory_of(source: str) -> str:
  """Returns the directory of a model; one on the hub is downloaded.

  Args:
    source: A directory; or `hf:NAME`, where NAME is `owner/model`; or
      `hf:NAME@REVISION`.

  Raises:
    ValueError: If it cannot be read.
  """
  if not source.startswith(PREFIX):
    return source
  hub = import_extra('huggingface_hub', 'hub', source)
  name, _, revision = source.removeprefix(PREFIX).partition('@')
  try:
    return hub.snapshot_download(
      name, revision=revision or None, allow_patterns=list(workdir.EXPORTED)
    )
  # The client raises errors of the network and its own, of many types.
  except Exception as error:
    raise ValueError(
      f'{source}: {one_line(error)}, allowed: hf:NAME of a model on the hub'
    ) from error


def push(directory: str, name: str) -> str:
  """Uploads an exported model.

  Args:
    directory: Directory of the model.
    name: Name on the hub, `owner/model`. It is created if it does not exist.

  Returns:
    The address of the model.

  Raises:
    ValueError: If it cannot be uploaded.
  """
  hub = import_extra('huggingface_hub', 'hub', name)
  try:
    address = hub.create_repo(name, exist_ok=True)
    hub.upload_folder(
      repo_id=name,
      folder_path=directory,
      allow_patterns=list(workdir.EXPORTED),
      commit_message='Model and card of `abstractinator export`',
    )
  except Exception as error:
    raise ValueError(
      f'{name}: {one_line(error)}, allowed: a name that can be written to;'
      f' {directory} is whole'
    ) from error
  return str(address)
