"""Stand-in for the API of the Hugging Face Hub, for one model in memory."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading

NAME = 'someone/tiny'
TOKEN = 'hf_of_tests'


class Hub(http.server.ThreadingHTTPServer):
  """Server that keeps the files of each commit.

  Attributes:
    commits: Files of each commit by its hash, the latest one last.
  """

  def __init__(self):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.commits = {}
    self.is_created = False

  @property
  def endpoint(self):
    return f'http://127.0.0.1:{self.server_port}'

  def files_of(self, revision):
    """Returns the hash and the files of a revision, or None."""
    sha = next(reversed(self.commits), None) if revision == 'main' else revision
    return (sha, self.commits[sha]) if sha in self.commits else None


@contextlib.contextmanager
def running(monkeypatch, folder):
  """Starts a hub, and makes the client use it and a cache of its own."""
  from huggingface_hub import constants, hf_api

  hub = Hub()
  thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
  thread.start()
  monkeypatch.setenv('HF_TOKEN', TOKEN)
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(folder))
  monkeypatch.setattr(constants, 'ENDPOINT', hub.endpoint)
  template = hub.endpoint + '/{repo_id}/resolve/{revision}/{filename}'
  monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
  monkeypatch.setattr(hf_api.api, 'endpoint', hub.endpoint)
  try:
    yield hub
  finally:
    hub.shutdown()
    hub.server_close()
    thread.join()


def _oid(content):
  return hashlib.sha1(content).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
  def do_POST(self):
    body = self.rfile.read(int(self.headers['Content-Length']))
    if self.headers['Authorization'] != f'Bearer {TOKEN}':
      self._answer(401, {'error': 'no token'})
    elif self.path == '/api/repos/create':
      organization, name = NAME.split('/')
      given = json.loads(body)
      assert (given['organization'], given['name']) == (organization, name)
      self.server.is_created = True
      self._answer(200, {'url': f'{self.server.endpoint}/{NAME}'})
    elif self.path == '/api/validate-yaml':
      self._answer(200, {'errors': [], 'warnings': []})
    elif not self.server.is_created:
      self._answer(404, {'error': 'no such model'})
    elif self.path == f'/api/models/{NAME}/preupload/main':
      files = json.loads(body)['files']
      kinds = {'uploadMode': 'regular', 'shouldIgnore': False}
      self._answer(200, {'files': [{'path': f['path']} | kinds for f in files]})
    elif self.path == f'/api/models/{NAME}/commit/main':
      self._commit(map(json.loads, body.splitlines()))
    else:
      self._answer(404, {'error': self.path})

  def _commit(self, lines):
    _, files = self.server.files_of('main') or (None, {})
    files = dict(files)
    for line in lines:
      if line['key'] == 'file':
        content = base64.b64decode(line['value']['content'])
        files[line['value']['path']] = content
    sha = _oid(repr(sorted(files.items())).encode())
    self.server.commits[sha] = files
    url = f'{self.server.endpoint}/{NAME}/commit/{sha}'
    self._answer(200, {'success': True, 'commitOid': sha, 'commitUrl': url})

  def do_GET(self):
    pattern = r'(?:/api/models)?/NAME/(revision|tree|resolve)/(\w+)/?([^?]*).*'
    match = re.fullmatch(pattern.replace('NAME', NAME), self.path)
    what, revision, name = match.groups() if match else (None,) * 3
    sha, files = self.server.files_of(revision) or (None, {})
    if sha is None:
      self._answer(404, {'error': 'no such revision'}, 'RevisionNotFound')
    elif what == 'revision':
      siblings = [{'rfilename': name} for name in files]
      self._answer(200, {'id': NAME, 'sha': sha, 'siblings': siblings})
    elif what == 'tree':
      self._answer(
        200,
        [
          {'type': 'file', 'path': name, 'size': len(x), 'oid': _oid(x)}
          for name, x in files.items()
        ],
      )
    else:
      content = files[name]
      self._send(200, content, ETag=f'"{_oid(content)}"', commit=sha)

  do_HEAD = do_GET

  def _answer(self, status, values, code=None):
    self._send(status, json.dumps(values).encode(), code=code)

  def _send(self, status, content, ETag=None, commit=None, code=None):
    self.send_response(status)
    for name, value in (
      ('Content-Length', len(content)),
      ('ETag', ETag),
      ('X-Repo-Commit', commit),
      ('X-Error-Code', code),
    ):
      if value is not None:
        self.send_header(name, value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(content)

  def log_message(self, *args):
    del args
