"""A reverse proxy that serves a node under a path, as `location /exo/ { proxy_pass …/; }` does."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_HOPS = frozenset({"connection", "transfer-encoding", "keep-alive", "host", "content-length", "x-forwarded-host"})


class PathProxy(ThreadingHTTPServer):
  daemon_threads = True

  def __init__(self, upstream: str, prefix: str) -> None:
    super().__init__(("127.0.0.1", 0), _Handler)
    self.upstream, self.prefix = upstream, prefix

  @property
  def url(self) -> str:
    return f"http://localhost:{self.server_address[1]}{self.prefix}/"

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Browsers end what they no longer want."""


class _Handler(BaseHTTPRequestHandler):
  server: PathProxy

  def log_message(self, format: str, *args: object) -> None:
    pass

  def _handed_on(self) -> None:
    prefix = self.server.prefix
    if not self.path.startswith(f"{prefix}/"):
      self.send_error(404)
      return
    at = urlsplit(self.server.upstream)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=60)
    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
    headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOPS}
    headers |= {"X-Forwarded-Host": self.headers["Host"], "X-Forwarded-For": self.client_address[0]}
    connection.request(self.command, self.path[len(prefix):], body or None, headers)
    response = connection.getresponse()
    self.send_response(response.status)
    for name, value in response.getheaders():
      if name.lower() not in _HOPS:
        self.send_header(name, value)
    self.send_header("Connection", "close")
    self.end_headers()
    while piece := response.read1(65536):
      self.wfile.write(piece)
      self.wfile.flush()
    connection.close()

  do_GET = do_POST = do_DELETE = _handed_on


@contextmanager
def path_proxy(upstream: str, prefix: str) -> Iterator[PathProxy]:
  proxy = PathProxy(upstream, prefix)
  threading.Thread(target=proxy.serve_forever, daemon=True).start()
  try:
    yield proxy
  finally:
    proxy.shutdown()
    proxy.server_close()
