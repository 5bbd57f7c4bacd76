"""A server that plays the Hugging Face hub for the folders given to it, well or badly."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_CHUNK = 1 << 18


@dataclass
class Faults:
  """What goes wrong. Counters are used up one a request; `file` limits those about content to one file's name."""
  status: list[int] = field(default_factory=list)  # answers to the next requests, for anything
  retry_after: str = ""
  gated: bool = False
  cut_after: int | None = None  # close the connection after so many bytes of a body …
  cut_times: int = 1 << 30  # … so often
  stall_after: int | None = None  # send so many bytes and then nothing
  ignore_ranges: bool = False
  wrong_range: bool = False
  corrupt: int = 0  # flip a byte in so many bodies
  redirect_to: str = ""
  bytes_per_s: float | None = None
  file: str = ""
  siblings: list[dict[str, Any]] | None = None  # instead of the folder's own list
  claimed_size: int | None = None  # of every weight file


class Hub(ThreadingHTTPServer):
  """`repos` maps org/name to a folder; `requests` remembers what was asked for, `sent` how many bytes of each file."""
  daemon_threads = True
  request_queue_size = 128

  def __init__(self, repos: dict[str, Path]) -> None:
    super().__init__(("127.0.0.1", 0), _Handler)
    self.repos = repos
    self.versions: dict[str, dict[str, Path]] = {}  # repo: commit: folder, beside the newest
    self.proposed: set[str] = set()  # those of them that lie on no branch
    self.requests: list[str] = []
    self.authorizations: list[str | None] = []
    self.sent: Counter[str] = Counter()
    self.faults = Faults()
    self.lock = threading.Lock()
    self.stopped = threading.Event()

  @property
  def url(self) -> str:
    kind = "https" if isinstance(self.socket, ssl.SSLSocket) else "http"
    return f"{kind}://127.0.0.1:{self.server_address[1]}"

  @property
  def bytes_sent(self) -> int:
    return sum(self.sent.values())

  def forget(self) -> None:
    """Begin to count anew."""
    self.requests.clear()
    self.authorizations.clear()
    self.sent.clear()

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Clients that go away are part of the game."""


@lru_cache(maxsize=64)
def _sha256(path: Path, mtime_ns: int) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(path: Path) -> str:
  return _sha256(path, path.stat().st_mtime_ns)


def git_oid_of(path: Path) -> str:
  data = path.read_bytes()
  return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
  server: Hub
  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True

  def do_GET(self) -> None:
    self._answer(body=True)

  def do_HEAD(self) -> None:
    self._answer(body=False)

  def log_message(self, format: str, *args: object) -> None:
    pass

  def _answer(self, *, body: bool) -> None:
    path, faults = unquote(urlsplit(self.path).path), self.server.faults
    if path.startswith("/api/") and not path.startswith("/api/models/"):  # the library's own, once a process
      self._json({}, 404)
      return
    with self.server.lock:
      self.server.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
      self.server.authorizations.append(self.headers.get("Authorization"))
      status = faults.status.pop(0) if faults.status else 200
    if status != 200:
      headers = {"Retry-After": faults.retry_after} if faults.retry_after else {}
      self._json({"error": "as told"}, status, headers)
      return
    for repo, newest in self.server.repos.items():
      versions = self.server.versions.get(repo, {})
      if re.fullmatch(rf"/api/models/{re.escape(repo)}/commits/[^/]+", path):
        commits = [COMMIT, *(commit for commit in versions if commit not in self.server.proposed)]
        date = "2026-01-01T00:00:00.000Z"
        self._json([{"id": c, "authors": [], "date": date, "title": "", "message": ""} for c in commits])
        return
      commit = next((commit for commit in versions if f"/{commit}" in path), COMMIT)
      folder = versions.get(commit, newest)
      if re.fullmatch(rf"/api/models/{re.escape(repo)}(/revision/[^/]+)?", path):
        if faults.gated:
          self._json({"error": "Access to this model is restricted"}, 403, {"X-Error-Code": "GatedRepo"})
        elif path.endswith("/revision/nowhere"):
          self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        else:
          self._json(self._info(repo, folder) | {"sha": commit})
        return
      match = re.fullmatch(rf"/{re.escape(repo)}/resolve/([^/]+)/(.+)", path)
      if match and (folder / match[2]).is_file():
        if faults.redirect_to:
          self._json({}, 302, {"Location": faults.redirect_to + self.path})
        else:
          self._file(folder / match[2], body)
        return
    self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

  def _info(self, repo: str, folder: Path) -> dict[str, object]:
    faults = self.server.faults
    files: list[dict[str, Any]] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
      name, size = path.relative_to(folder).as_posix(), path.stat().st_size
      if path.suffix in (".safetensors", ".gguf"):
        size = faults.claimed_size or size
        lfs = {"sha256": sha256_of(path), "size": size, "pointerSize": 134}
        files.append({"rfilename": name, "size": size, "blobId": "0" * 40, "lfs": lfs})
      else:
        files.append({"rfilename": name, "size": size, "blobId": git_oid_of(path)})
    return {
        "id": repo, "modelId": repo, "sha": COMMIT, "private": False, "gated": False,
        "siblings": files if faults.siblings is None else faults.siblings, "tags": [], "downloads": 0, "likes": 0
    }

  def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
    data = json.dumps(value).encode()
    self.send_response(status)
    for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
      self.send_header(name, text)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)

  def _file(self, path: Path, body: bool) -> None:
    faults, size = self.server.faults, path.stat().st_size
    about = not faults.file or faults.file == path.name
    start, end, total = 0, size, faults.claimed_size or size
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
    ranged = match is not None and not (about and faults.ignore_ranges)
    if ranged and match is not None:
      start, end = int(match[1]), min(int(match[2]) + 1, size)
    self.send_response(206 if ranged else 200)
    shift = 7 if about and faults.wrong_range else 0
    if ranged:
      self.send_header("Content-Range", f"bytes {start + shift}-{end - 1 + shift}/{total}")
    for name, text in {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256_of(path)}"', "Accept-Ranges": "bytes"}.items():
      self.send_header(name, text)
    self.send_header("Content-Length", str(end - start))
    self.end_headers()
    if body:
      self._send(path, start, end, about)

  def _send(self, path: Path, start: int, end: int, about: bool) -> None:
    faults, server = self.server.faults, self.server
    with server.lock:
      cut = faults.cut_after if about and faults.cut_after is not None and faults.cut_times > 0 else None
      corrupt = about and faults.corrupt > 0
      faults.cut_times -= cut is not None
      faults.corrupt -= corrupt
    with path.open("rb") as file:
      file.seek(start)
      at = start
      while at < end:
        data = file.read(min(_CHUNK, end - at, *([cut - (at - start)] if cut is not None else [])))
        if corrupt:
          data, corrupt = bytes([data[0] ^ 255]) + data[1:], False
        if about and faults.stall_after is not None and at - start >= faults.stall_after:
          server.stopped.wait(60)
          return
        self.wfile.write(data)
        at += len(data)
        with server.lock:
          server.sent[path.name] += len(data)
        if cut is not None and at - start >= cut:
          self.close_connection = True
          return
        if faults.bytes_per_s:
          time.sleep(len(data) / faults.bytes_per_s)


@contextmanager
def hub(repos: dict[str, Path]) -> Iterator[Hub]:
  server = Hub(repos)
  thread = threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.02})
  thread.start()
  try:
    yield server
  finally:
    server.stopped.set()
    server.shutdown()
    server.server_close()
    thread.join()
