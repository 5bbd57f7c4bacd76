"""A small server that plays the Hugging Face hub for the folders given to it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
  """`repos` maps org/name to a folder; `requests` remembers what was asked for."""
  daemon_threads = True

  def __init__(self, repos: dict[str, Path]) -> None:
    super().__init__(("127.0.0.1", 0), _Handler)
    self.repos = repos
    self.requests: list[str] = []

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
  server: Hub
  protocol_version = "HTTP/1.1"

  def do_GET(self) -> None:
    self._answer(body=True)

  def do_HEAD(self) -> None:
    self._answer(body=False)

  def log_message(self, format: str, *args: object) -> None:
    pass

  def _answer(self, *, body: bool) -> None:
    path = unquote(urlsplit(self.path).path)
    self.server.requests.append(f"{self.command} {self.path}")
    for repo, folder in self.server.repos.items():
      if path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/main", f"/api/models/{repo}/revision/{COMMIT}"):
        self._send(json.dumps(self._info(repo, folder)).encode(), {"Content-Type": "application/json"}, body)
        return
      if path in (f"/api/models/{repo}/tree/main", f"/api/models/{repo}/tree/{COMMIT}"):
        tree = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
                for p in sorted(folder.iterdir())]
        self._send(json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
        return
      for revision in ("main", COMMIT):
        prefix = f"/{repo}/resolve/{revision}/"
        if path.startswith(prefix) and (folder / path.removeprefix(prefix)).is_file():
          data = (folder / path.removeprefix(prefix)).read_bytes()
          headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
          self._send(data, headers, body)
          return
    self._send(b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, body, 404)

  def _info(self, repo: str, folder: Path) -> dict[str, object]:
    files = [{"rfilename": path.name, "size": path.stat().st_size} for path in sorted(folder.iterdir())]
    return {
        "id": repo, "modelId": repo, "sha": COMMIT, "private": False, "gated": False, "siblings": files, "tags": [],
        "downloads": 0, "likes": 0
    }

  def _send(self, data: bytes, headers: dict[str, str], body: bool, status: int = 200) -> None:
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    if body:
      self.wfile.write(data)


@contextmanager
def hub(repos: dict[str, Path]) -> Iterator[Hub]:
  server = Hub(repos)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
