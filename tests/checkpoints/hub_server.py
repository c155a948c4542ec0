"""A Hugging Face Hub in memory, on the loopback interface: what huggingface_hub asks of it, and faults on order.

It holds repositories as chains of commits, each a mapping from path to blob. Blobs of weights (`LARGE`) go through
LFS and are served from another host name, as the Hub's content network does.
"""

import base64
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN, READER = 'hf_writer', 'hf_reader'
LARGE = ('.safetensors', '.pt2', '.onnx')
LICENSES = {'apache-2.0', 'mit', 'cc-by-4.0', 'other'}


def git_hash(data):
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


@dataclass
class Commit:
    """The files of a revision: path -> (blob, whether it is in LFS)."""

    files: dict
    title: str = 'initial commit'
    parent: str | None = None

    @property
    def oid(self):
        text = [self.parent, self.title, *((path, git_hash(blob)) for path, (blob, _) in sorted(self.files.items()))]
        return hashlib.sha1(repr(text).encode()).hexdigest()


@dataclass
class Repository:
    private: bool = False
    commits: dict = field(default_factory=dict)
    refs: dict = field(default_factory=dict)

    def __post_init__(self):
        self.add('main', Commit({'.gitattributes': (b'*.safetensors filter=lfs\n', False)}))

    def add(self, ref, commit):
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit

    def resolve(self, revision):
        return self.commits.get(self.refs.get(revision, revision))

    def history(self, ref='main'):
        """Return the commits of a branch, the newest first."""
        oid, commits = self.refs[ref], []
        while oid:
            commits.append(self.commits[oid])
            oid = commits[-1].parent
        return commits


@dataclass
class Fault:
    """What to do to the next `times` requests whose "METHOD /path" begins with a match of `pattern`.

    `action` is a status to answer, 'drop' (read half of the request, close the connection), 'die' (the same, and
    listen no more), 'truncate' (send half of the content, close the connection) or 'short' (keep or send half of the
    content as if it were all).
    """

    pattern: str
    action: object
    times: int = 1


class Hub:
    """State, faults and a log of requests; `with Hub() as hub` serves at `hub.url`."""

    def __init__(self):
        self.repositories, self.objects = {}, {}
        self.faults, self.requests, self.unknown = [], [], []
        self.port, self.server = 0, None
        self.lock = threading.Lock()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def url(self):
        return f'http://127.0.0.1:{self.port}'

    def start(self):
        """Listen, after a death at the same port with the same state."""
        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', self.port), _Handler)
        self.server.hub, self.server.daemon_threads, self.server.block_on_close = self, True, False
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        server, self.server = self.server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def fail(self, pattern, action, times=1):
        self.faults.append(Fault(pattern, action, times))

    def fault_of(self, request):
        with self.lock:
            for fault in self.faults:
                if fault.times and re.match(fault.pattern, request):
                    fault.times -= 1
                    return fault.action
        return None

    def asked(self, pattern):
        """Return the requests that match, as "METHOD /path"."""
        return [request for request in self.requests if re.match(pattern, request)]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = 'HTTP/1.1', True
    routes: tuple = ()

    def log_message(self, *_):
        pass

    def handle_any(self):
        split = urlsplit(self.path)
        path, self.query = split.path, parse_qs(split.query)  # a revision is quoted: refs%2Fpr%2F1
        request = f'{self.command} {path}'
        self.hub = self.server.hub
        if self.hub.server is not self.server:  # dead: nor does a connection that was kept alive get an answer
            return self.break_off(0, 'drop')
        self.hub.requests.append(request)
        action = self.hub.fault_of(request)
        length = int(self.headers.get('Content-Length') or 0)
        if action in ('drop', 'die'):
            return self.break_off(length // 2, action)
        self.action, self.body = action, self.rfile.read(length)
        if isinstance(action, int):
            return self.error(action, 'a fault on order')
        for method, pattern, answer in self.routes:
            match = re.fullmatch(pattern, path)
            if method == self.command.replace('HEAD', 'GET') and match:
                with self.hub.lock:
                    return answer(self, **{name: unquote(value) for name, value in match.groupdict().items()})
        if path != '/api/agent-harnesses':  # of no interest: which program the client runs under
            self.hub.unknown.append(request)
        return self.error(404, f'unknown {request}')

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def break_off(self, count, action):
        self.rfile.read(count)
        self.close_connection = True
        if action == 'die':
            self.hub.stop()

    def send(self, status=200, content=b'', headers=()):
        content = content[: len(content) // 2] if self.action == 'short' else content
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if self.action == 'truncate':
            content, self.close_connection = content[: len(content) // 2], True
        if self.command != 'HEAD':
            self.wfile.write(content)

    def json(self, data, status=200, headers=()):
        self.send(status, json.dumps(data).encode(), {'Content-Type': 'application/json', **dict(headers)})

    def error(self, status, message, code=None):
        self.action = None
        self.json({'error': message}, status, {'X-Error-Message': message, **({'X-Error-Code': code} if code else {})})

    def may_write(self, *, to_storage=False):
        token = (self.headers.get('Authorization') or '').removeprefix('Bearer ')
        proposes = self.query.get('create_pr') or to_storage  # anybody may open a pull request
        if token == TOKEN or (token == READER and proposes):
            return True
        self.error(403 if token else 401, 'Forbidden' if token else 'Invalid username or password.')
        return False

    def repository(self, repo):
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and not self.headers.get('Authorization')):
            self.error(401 if not self.headers.get('Authorization') else 404, 'Repository not found', 'RepoNotFound')
            return None
        return found

    def revision(self, repo, revision):
        repository = self.repository(repo)
        commit = repository and repository.resolve(revision)
        if repository and commit is None:
            self.error(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return commit

    def create(self):
        if not self.may_write():
            return None
        asked = json.loads(self.body)
        name = f'{asked["organization"]}/{asked["name"]}'
        if not name.startswith('user/'):
            return self.error(403, f'You have no rights to create a model under {asked["organization"]}')
        answer = {'url': f'{self.hub.url}/{name}', 'name': name}
        if name in self.hub.repositories:
            return self.json({**answer, 'error': 'You already created this model repo'}, 409)
        private = asked.get('private') or asked.get('visibility') == 'private'
        self.hub.repositories[name] = Repository(private=bool(private))
        return self.json(answer)

    def validate(self):
        metadata = yaml.safe_load(json.loads(self.body)['content'].split('---\n')[1])
        errors = (
            [] if metadata.get('license', 'other') in LICENSES else [{'message': '"license" must be one of a list'}]
        )
        self.json({'errors': errors, 'warnings': []}, 400 if errors else 200)

    def info(self, repo, revision='main'):
        commit = self.revision(repo, revision)
        if commit:
            files = [{'rfilename': path} for path in sorted(commit.files)]
            about = {'id': repo, 'modelId': repo, 'sha': commit.oid, 'private': self.hub.repositories[repo].private}
            self.json({**about, 'siblings': files, 'tags': [], 'downloads': 0})

    def tree(self, repo, revision):
        commit = self.revision(repo, revision)
        if commit:
            self.json([_entry(path, blob, lfs) for path, (blob, lfs) in sorted(commit.files.items())])

    def branch(self, repo, branch):
        repository = self.may_write() and self.repository(repo)
        if repository:
            repository.refs[branch] = repository.refs[json.loads(self.body).get('startingPoint', 'main')]
            self.json({})

    def preupload(self, repo, revision):
        commit = self.may_write() and self.revision(repo, revision)
        if commit:
            present = {path: _oid(*entry) for path, entry in commit.files.items()}
            files = [
                {
                    'path': file['path'],
                    'uploadMode': 'lfs' if file['path'].endswith(LARGE) else 'regular',
                    'shouldIgnore': False,
                    'oid': present.get(file['path']),
                }
                for file in json.loads(self.body)['files']
            ]
            self.json({'files': files})

    def batch(self, repo):
        if not self.may_write(to_storage=True) or not self.repository(repo):
            return
        objects = []
        for item in json.loads(self.body)['objects']:
            oid = item['oid']
            links = {
                'upload': {'href': f'{self.hub.url}/lfs/{oid}'},
                'verify': {'href': f'{self.hub.url}/verify/{repo}'},
            }
            objects.append(item if oid in self.hub.objects else {**item, 'actions': links})
        self.json({'transfer': 'basic', 'objects': objects})

    def upload(self, oid):
        self.hub.objects[oid] = self.body[: len(self.body) // 2] if self.action == 'short' else self.body
        self.send()

    def verify(self, repo):
        asked = json.loads(self.body)
        blob = self.hub.objects.get(asked['oid'], b'')
        if len(blob) == asked['size'] and hashlib.sha256(blob).hexdigest() == asked['oid']:
            return self.json({})
        self.hub.objects.pop(asked['oid'], None)
        return self.error(422, 'the object has another size or hash')

    def commit(self, repo, revision):
        parent = self.may_write() and self.revision(repo, revision)
        if not parent:
            return
        repository = self.hub.repositories[repo]
        lines = [json.loads(line) for line in self.body.decode().splitlines()]
        expected = lines[0]['value'].get('parentCommit')
        if expected not in (None, parent.oid):
            self.error(412, f'the parent is {parent.oid}, not {expected}')
            return
        files = dict(parent.files)
        for value in (line['value'] for line in lines if line['key'] == 'file'):
            files[value['path']] = base64.b64decode(value['content']), False
        for value in (line['value'] for line in lines if line['key'] == 'lfsFile'):
            files[value['path']] = self.hub.objects[value['oid']], True
        for value in (line['value'] for line in lines if line['key'] == 'deletedFile'):
            del files[value['path']]
        number = sum(ref.startswith('refs/pr/') for ref in repository.refs) + 1
        opens = bool(self.query.get('create_pr'))
        ref = f'refs/pr/{number}' if opens else revision
        made = repository.add(ref, Commit(files, lines[0]['value']['summary'], parent.oid))
        answer = {'success': True, 'commitOid': made.oid, 'commitUrl': f'{self.hub.url}/{repo}/commit/{made.oid}'}
        self.json({**answer, 'pullRequestUrl': f'{self.hub.url}/{repo}/discussions/{number}'} if opens else answer)

    def resolve(self, repo, revision, path):
        commit = self.revision(repo, revision)
        if not commit:
            return None
        if path not in commit.files:
            return self.error(404, f'no {path}', 'EntryNotFound')
        blob, lfs = commit.files[path]
        headers = {'X-Repo-Commit': commit.oid, 'ETag': f'"{_oid(blob, lfs)}"'}
        if not lfs:
            return self.send(200, blob, headers)
        headers |= {'X-Linked-Etag': headers['ETag'], 'X-Linked-Size': str(len(blob))}
        return self.send(302, b'', {**headers, 'Location': f'http://localhost:{self.hub.port}/cdn/{_oid(blob, lfs)}'})

    def content(self, oid):
        if self.headers.get('Authorization'):
            return self.error(400, 'a token has left the Hub')
        blob, range_header = self.hub.objects[oid], self.headers.get('Range')
        if not range_header:
            return self.send(200, blob)
        start = int(range_header.removeprefix('bytes=').split('-')[0])
        return self.send(206, blob[start:], {'Content-Range': f'bytes {start}-{len(blob) - 1}/{len(blob)}'})

    routes = (
        ('POST', '/api/repos/create', create),
        ('POST', '/api/validate-yaml', validate),
        ('POST', '/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)', preupload),
        ('POST', '/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)', commit),
        ('POST', '/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>[^/]+)', branch),
        ('GET', '/api/models/(?P<repo>[^/]+/[^/]+)', info),
        ('GET', '/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)', info),
        ('GET', '/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)', tree),
        ('POST', '/(?P<repo>[^/]+/[^/]+)[.]git/info/lfs/objects/batch', batch),
        ('PUT', '/lfs/(?P<oid>.+)', upload),
        ('POST', '/verify/(?P<repo>.+)', verify),
        ('GET', '/cdn/(?P<oid>.+)', content),
        ('GET', '/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)', resolve),
    )


def _oid(blob, lfs):
    return hashlib.sha256(blob).hexdigest() if lfs else git_hash(blob)


def _entry(path, blob, lfs):
    pointer = {'lfs': {'oid': _oid(blob, lfs), 'size': len(blob), 'pointerSize': 134}} if lfs else {}
    return {'type': 'file', 'path': path, 'size': len(blob), 'oid': git_hash(blob), **pointer}
