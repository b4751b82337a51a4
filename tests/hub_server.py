"""A local stand-in of the Hugging Face hub: enough of its HTTP for huggingface_hub to list and download.

    with serve_hub(root) as hub:             # root/{datasets,models}/OWNER/NAME/FILES…
        snapshot_download('owner/name', repo_type='dataset', endpoint=hub)
    python tests/hub_server.py ROOT          # prints the address and serves until it is killed

For other processes: HF_ENDPOINT=address and HF_HUB_OFFLINE=0. `hub` is the address, a string, and is told
how to fail by its attributes: `gated` (names of repositories whose files answer 403, or 401 without a token),
`errors` (the next requests answer with these status codes), `cut` (file name -> list: after how many bytes
each next download of the file breaks), `down` (everything answers 503) and `pause` (seconds before the bytes
of each file). `requests` lists (method, path, range) of what came in.
"""
import hashlib
import json
import sys
import threading
import time
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 1000  # files in one answer of the tree, as on the hub


class Hub(str):
    "The address, with what the server is told and what it saw."
    def __new__(cls, url):
        hub = super().__new__(cls, url)
        hub.gated, hub.errors, hub.cut, hub.down, hub.pause, hub.requests = set(), [], {}, False, 0, []
        return hub


@lru_cache(None)
def _sha256(path, size, mtime):
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while piece := f.read(1 << 20): digest.update(piece)
    return digest.hexdigest()


def sha256(path):
    about = path.stat()
    return _sha256(path, about.st_size, about.st_mtime_ns)


def files_of(folder):
    return sorted((p.relative_to(folder).as_posix(), p) for p in folder.rglob('*') if p.is_file())


def commit_of(folder):
    "The commit of what is there: another one as soon as a file changes."
    return hashlib.sha1(''.join(f'{name} {sha256(p)}\n' for name, p in files_of(folder)).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
    def do_GET(self): self.reply()
    def do_HEAD(self): self.reply()

    def send(self, status, body=b'', **headers):
        self.send_response(status)
        for name, value in (dict(Content_Length=len(body)) | headers).items():
            self.send_header(name.replace('_', '-'), str(value))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)

    def send_json(self, content, **headers):
        self.send(200, json.dumps(content).encode(), Content_Type='application/json', **headers)

    def refuse(self, status, code, message):
        body = json.dumps(dict(error=message)).encode()
        self.send(status, body, X_Error_Code=code, X_Error_Message=message)

    def reply(self):
        hub, url = self.server.hub, urlsplit(self.path)
        hub.requests.append((self.command, url.path, self.headers.get('Range')))
        if hub.down: return self.send(503)
        if hub.errors: return self.send(hub.errors.pop(0))
        parts = [unquote(p) for p in url.path.strip('/').split('/')]
        api = parts[0] == 'api'
        if api: kind, parts = parts[1], parts[2:]
        elif parts[0] == 'datasets': kind, parts = 'datasets', parts[1:]
        else: kind = 'models'
        repo, rest = '/'.join(parts[:2]), parts[2:]
        folder = self.server.root/kind/repo
        if kind not in ('datasets', 'models') or len(parts) < 2 or not folder.is_dir():
            return self.refuse(401, 'RepoNotFound', 'Invalid username or password.')  # as the hub does
        commit = commit_of(folder)
        word, revision, *path = [*rest, 'main', 'main'][:2] + rest[2:]
        if rest and word in ('resolve', 'tree', 'revision') and revision not in ('main', commit):
            return self.refuse(404, 'RevisionNotFound', f'Invalid rev id: {revision}')
        if not api and word == 'resolve': return self.send_file(folder, repo, commit, '/'.join(path))
        if api and word == 'tree': return self.send_tree(folder, '/'.join(path), parse_qs(url.query))
        if api and (not rest or word == 'revision'):
            siblings = [dict(rfilename=name) for name, _ in files_of(folder)]
            return self.send_json(dict(id=repo, sha=commit, private=False, disabled=False, siblings=siblings,
                gated='manual' if repo in hub.gated else False, tags=[], downloads=0, likes=0))
        self.send(404)

    def send_tree(self, folder, path, query):
        "Files and folders below a path, a page at a time."
        here, recursive = folder/path, query.get('recursive', ['false'])[0].lower() == 'true'
        if not here.is_dir(): return self.refuse(404, 'EntryNotFound', f'{path} does not exist on "main"')
        found = sorted(here.rglob('*') if recursive else here.iterdir())
        start = int(query.get('cursor', ['0'])[0])
        rows = []
        for p in found[start:start+PAGE]:
            row = dict(type='file' if p.is_file() else 'directory', path=p.relative_to(folder).as_posix(),
                size=0, oid=hashlib.sha1(str(p).encode()).hexdigest())
            if p.is_file():
                size = p.stat().st_size
                row |= dict(size=size, lfs=dict(oid=sha256(p), size=size, pointerSize=134))
            rows.append(row)
        headers = {}
        if start+PAGE < len(found):
            address = self.server.hub+urlsplit(self.path).path
            headers = dict(Link=f'<{address}?recursive={recursive}&cursor={start+PAGE}>; rel="next"')
        self.send_json(rows, **headers)

    def send_file(self, folder, repo, commit, name):
        hub, path = self.server.hub, folder/name
        if repo in hub.gated:
            status = 403 if self.headers.get('Authorization') else 401
            return self.refuse(status, 'GatedRepo', f'Access to {repo} is restricted.')
        if not path.is_file(): return self.refuse(404, 'EntryNotFound', f'{name} does not exist')
        size = path.stat().st_size
        headers = dict(X_Repo_Commit=commit, ETag=f'"{sha256(path)}"', Accept_Ranges='bytes')
        start, end, status = 0, size, 200
        if wanted := self.headers.get('Range'):
            first, _, last = wanted.removeprefix('bytes=').partition('-')
            start, end, status = int(first), min(int(last)+1 if last else size, size), 206
            if start >= size: return self.send(416, Content_Range=f'bytes */{size}')
            headers['Content_Range'] = f'bytes {start}-{end-1}/{size}'
        self.send_response(status)
        for key, value in dict(headers, Content_Length=end-start).items():
            self.send_header(key.replace('_', '-'), str(value))
        self.end_headers()
        if self.command == 'HEAD': return
        time.sleep(hub.pause)
        cuts = hub.cut.get(name) or hub.cut.get(path.name)
        if cuts:
            end = min(end, start+cuts.pop(0))
            self.close_connection = True
        with open(path, 'rb') as f:
            f.seek(start)
            while start < end:
                piece = f.read(min(1 << 20, end-start))
                start += len(piece)
                try: self.wfile.write(piece)
                except OSError: return


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    def handle_error(self, *args): pass  # a client that went away


def start(root, port=0):
    server = Server(('127.0.0.1', port), Handler)
    server.root, server.hub = Path(root), Hub(f'http://127.0.0.1:{server.server_port}')
    return server


@contextmanager
def serve_hub(root, port=0):
    "The address of a server of the repositories below `root`, while the block runs."
    server = start(root, port)
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.05), daemon=True).start()
    try: yield server.hub
    finally:
        server.shutdown()
        server.server_close()


if __name__ == '__main__':
    server = start(sys.argv[1])
    print(server.hub, flush=True)
    server.serve_forever()
