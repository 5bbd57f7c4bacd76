"""Raw HTTP to a node, for what a client library would hide."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from typing import Any

from test.support.nodes import NodeProcess


def connect(node: NodeProcess, timeout_s: float = 120) -> http.client.HTTPConnection:
  address = urllib.parse.urlsplit(node.url)
  return http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout_s)


def raw_stream(node: NodeProcess, path: str, body: dict[str, Any]) -> list[str]:
  """All lines of a streamed answer."""
  connection = connect(node)
  connection.request("POST", path, json.dumps(body | {"stream": True}), {"Content-Type": "application/json"})
  response = connection.getresponse()
  assert response.status == 200, response.read()
  assert response.headers["Content-Type"].startswith("text/event-stream")
  lines = response.read().decode().split("\n")
  connection.close()
  return lines


def stream_data(node: NodeProcess, path: str, body: dict[str, Any]) -> list[str]:
  """The `data:` lines of a streamed answer, without that word."""
  return [line.removeprefix("data: ") for line in raw_stream(node, path, body) if line.startswith("data: ")]


def stream_json(node: NodeProcess, path: str, body: dict[str, Any]) -> list[Any]:
  """The objects of a streamed answer, which must end with `[DONE]`."""
  data = stream_data(node, path, body)
  assert data[-1] == "[DONE]"
  return [json.loads(line) for line in data[:-1]]


def call(node: NodeProcess,
         method: str,
         path: str,
         body: bytes | None = None,
         headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], Any]:
  """(status, headers, JSON or text)."""
  connection = connect(node)
  connection.request(method, path, body, headers or {})
  response = connection.getresponse()
  data = response.read()
  connection.close()
  try:
    value = json.loads(data)
  except ValueError:
    value = data.decode(errors="replace")
  return response.status, {k.lower(): v for k, v in response.getheaders()}, value


def assert_error(status: int, answer: Any, *expected: int) -> Any:
  """The one shape of all errors; returns the error itself."""
  assert status in expected, (status, answer)
  error = answer["error"]
  assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
  return error
