"""A proxy as networks have them: hands on http:// requests, opens tunnels for https://, or refuses."""

from __future__ import annotations

import http.client
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class WebProxy(ThreadingHTTPServer):
  """`asked` remembers methods and addresses; `status` other than 0 is answered instead of doing anything."""
  daemon_threads = True

  def __init__(self) -> None:
    super().__init__(("127.0.0.1", 0), _Handler)
    self.asked: list[str] = []
    self.authorizations: list[str | None] = []
    self.status = 0

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self.server_address[1]}"

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Clients that go away are part of the game."""


class _Handler(BaseHTTPRequestHandler):
  server: WebProxy

  def log_message(self, format: str, *args: object) -> None:
    pass

  def _refused(self) -> bool:
    self.server.asked.append(f"{self.command} {self.path}")
    self.server.authorizations.append(self.headers.get("Proxy-Authorization"))
    if self.server.status:
      self.send_response(self.server.status)
      self.send_header("Content-Length", "0")
      self.end_headers()
    return bool(self.server.status)

  def do_CONNECT(self) -> None:
    if self._refused():
      return
    host, _, port = self.path.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as there:
      self.send_response(200)
      self.end_headers()
      ends = {self.connection: there, there: self.connection}
      while True:
        for ready in select.select(list(ends), [], [], 30)[0] or [None]:
          data = b"" if ready is None else ready.recv(65536)
          if not data:
            self.close_connection = True
            return
          ends[ready].sendall(data)

  def do_GET(self) -> None:
    if self._refused():
      return
    address = urlsplit(self.path)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    headers = {name: text for name, text in self.headers.items() if not name.lower().startswith("proxy-")}
    connection.request(self.command, address._replace(scheme="", netloc="").geturl(), headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    self.send_response(answer.status)
    for name, text in answer.getheaders():
      if name.lower() not in ("transfer-encoding", "connection"):
        self.send_header(name, text)
    self.end_headers()
    self.wfile.write(body)
    connection.close()

  do_HEAD = do_GET


@contextmanager
def web_proxy() -> Iterator[WebProxy]:
  server = WebProxy()
  thread = threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.02})
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
