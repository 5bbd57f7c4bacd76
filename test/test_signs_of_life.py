"""Issue 21, line 3: streams whose prompt is still being read say that they live, from the first second on, as each client bears it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from test.support.http import connect
from test.support.nodes import NodeProcess
from test.support.shaped_models import LONG, write_shaped

pytestmark = pytest.mark.slow  # prompts that take seconds
MODEL = "tiny-long"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  home = tmp_path_factory.mktemp("life")
  write_shaped(home / "models" / f"{MODEL}.gguf", LONG, "Q8_0")
  flags = ("--model-dir", str(home / "models"), "--default-model", MODEL, "--discovery-module", "none")
  started = NodeProcess(home, *flags, node_id="life")
  yield started.wait_ready()
  started.stop()


def arrivals(node: NodeProcess, path: str, body: dict[str, Any]) -> list[tuple[float, bytes]]:
  """(seconds since the answer began, line) of a streamed answer."""
  connection = connect(node)
  connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
  response = connection.getresponse()
  assert response.status == 200, response.read()
  began, found = time.monotonic(), []
  while line := response.readline():
    found.append((time.monotonic() - began, line.strip()))
  connection.close()
  return [(at, line) for at, line in found if line]


@pytest.mark.parametrize(("path", "first", "sign", "spoken"), [
    ("/v1/chat/completions", "a", b": keep-alive", b'"finish_reason":"'), ("/v1/messages", "b", b'data: {"type":"ping"}', b"content_block_delta"),
    ("/api/chat", "c", b'"content":""', b'"done":true')
])  # yapf: disable
def test_21_line_3_a_long_prompt_is_no_silence(
    node: NodeProcess, path: str, first: str, sign: bytes, spoken: bytes
) -> None:
  messages = [{"role": "user", "content": first * 60_000}]
  body = {"model": MODEL, "messages": messages, "max_tokens": 5, "options": {"num_predict": 5}, "stream": True}
  found = arrivals(node, path, body)
  begun = next(at for at, line in found if spoken in line)
  signs = [at for at, line in found if sign in line and at < begun]
  assert begun > 3, "the prompt was read too quickly to tell"
  assert len(signs) >= 2 and signs[0] < 2
