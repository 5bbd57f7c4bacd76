"""Requirements 9 to 13: what strangers, web pages and greedy clients can do over HTTP, and what logs and folders show."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from exo import log
from exo.api import chatgpt_api, connections, keys, request_body
from exo.api.json_depth import deeper_than
from exo.api.keys import ApiKeys, ApiKeyStore
from exo.cli.assemble import RunningNode, running_node
from exo.config import Config, config_from
from exo.errors import ConfigError
from exo.networking.address_rule import own_addresses
from test.support.nodes import ROOT, NodeProcess, wait_until

BASE = ("--inference-engine", "dummy", "--default-model", "dummy", "--discovery-module", "none")
KEY = "given-by-hand-0123456789"
JSON = {"Content-Type": "application/json"}
CHAT = json.dumps({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3})
ROUTES = [
    ("POST", "/v1/chat/completions"), ("POST", "/chat/completions"), ("POST", "/v1/completions"),
    ("POST", "/v1/chat/token/encode"), ("GET", "/v1/models"), ("GET", "/models"), ("GET", "/v1/models/dummy"),
    ("GET", "/v1/topology"), ("GET", "/topology"), ("GET", "/v1/topology/stream"), ("GET", "/metrics"),
    ("GET", "/v1/download/progress"), ("POST", "/quit"), ("POST", "/download"), ("DELETE", "/models/dummy"),
    ("GET", "/nowhere")
]  # yapf: disable


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  """Without any flag of security, but bound to every address, so that requests can come from elsewhere."""
  started = NodeProcess(tmp_path_factory.mktemp("open"), *BASE, "--chatgpt-api-host", "0.0.0.0", node_id="open")
  yield started.wait_ready()
  started.stop()


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  started = NodeProcess(
      tmp_path_factory.mktemp("keyed"),
      *BASE,
      "--cors-origin",
      "https://chat.example",
      "--api-allowed-host",
      "exo.example",
      node_id="keyed",
      env={"EXO_API_KEY": KEY}
  )
  yield started.wait_ready()
  started.stop()


def ask(
    node: NodeProcess,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: str | bytes | None = None,
    host: str = "127.0.0.1"
) -> tuple[int, dict[str, str], bytes]:
  """(status, headers, body) of a raw request."""
  connection = http.client.HTTPConnection(host, int(node.url.rpartition(":")[2]), timeout=20)
  try:
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    data = b"" if "stream" in path and response.status == 200 else response.read()
    return response.status, {k.lower(): v for k, v in response.getheaders()}, data
  finally:
    connection.close()


def info_of(node: NodeProcess) -> dict[str, Any]:
  return json.loads(node.runtime_file.read_text())


def own_address() -> str:
  addresses = [str(a) for a in own_addresses() if a.version == 4 and not a.is_loopback]
  if not addresses:
    pytest.skip("this machine has no address but loopback")
  return addresses[0]


# 9: names, origins, keys


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:52415",
                                  "8.8.8.8.nip.io", "[::1].evil.example", "exo.example", "x" * 5000])  # yapf: disable
def test_09_a_rebound_name_is_refused(node: NodeProcess, host: str) -> None:
  """A page of evil.example whose name now points to 127.0.0.1 asks with its own name."""
  for method, path in (("GET", "/v1/topology"), ("POST", "/v1/chat/completions"), ("GET", "/"), ("GET", "/health")):
    status, _, body = ask(node, method, path, {"Host": host, **JSON}, CHAT if method == "POST" else None)
    assert status == 403 and set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:52415", "127.0.0.1", "127.0.0.1:9", "[::1]:52415", "a.localhost",
                                  "localhost.", socket.gethostname()])  # yapf: disable
def test_09_names_of_this_machine_are_served(node: NodeProcess, host: str) -> None:
  assert ask(node, "GET", "/v1/topology", {"Host": host})[0] == 200
  assert ask(node, "GET", "/v1/topology", {"Host": own_address()}, host=own_address())[0] == 200


def test_09_allowed_names_are_served(keyed: NodeProcess) -> None:
  bearer = {"Authorization": f"Bearer {KEY}"}
  assert ask(keyed, "GET", "/v1/models", {"Host": "exo.example:52415", **bearer})[0] == 200
  assert ask(keyed, "GET", "/v1/models", {"Host": "not.exo.example", **bearer})[0] == 403


def test_09_no_cors_unless_asked_for(node: NodeProcess, keyed: NodeProcess) -> None:
  bearer = {"Authorization": f"Bearer {KEY}"}
  for origin in ("https://evil.example", "null", "http://localhost:3000", "https://chat.example.evil.example"):
    for asked, more in ((node, {}), (keyed, bearer)):
      status, headers, _ = ask(asked, "GET", "/v1/models", {"Origin": origin, **more})
      assert status == 200 and not [h for h in headers if h.startswith("access-control-")]
      preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
      status, headers, _ = ask(asked, "OPTIONS", "/v1/chat/completions", preflight)
      assert status == 403 and not [h for h in headers if h.startswith("access-control-")]
  status, headers, _ = ask(keyed, "GET", "/v1/models", {"Origin": "https://chat.example", **bearer})
  assert status == 200 and headers["access-control-allow-origin"] == "https://chat.example"
  preflight = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST",
               "Access-Control-Request-Headers": "authorization,content-type"}  # yapf: disable
  status, headers, _ = ask(keyed, "OPTIONS", "/v1/chat/completions", preflight)
  assert status == 204 and headers["access-control-allow-headers"] == "authorization,content-type"
  stream = json.dumps(json.loads(CHAT) | {"stream": True})
  _, headers, _ = ask(
      keyed, "POST", "/v1/chat/completions", {"Origin": "https://chat.example", **bearer, **JSON}, stream
  )
  assert headers["access-control-allow-origin"] == "https://chat.example"


def test_09_pages_of_others_change_nothing(node: NodeProcess) -> None:
  """What a form or a fetch of another site can send without a preflight: other types, or JSON under its own origin."""
  for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", None):
    headers = {} if kind is None else {"Content-Type": kind}
    for told in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"
                                                      }):  # browsers send one of them at least
      assert ask(node, "POST", "/v1/chat/completions", headers | told, CHAT)[0] in (403, 415)
    assert ask(node, "POST", "/download", headers, '{"model": "dummy"}')[0] == 415
  for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://[", f"ftp://{node.url[7:]}"):
    for method, path in (("POST", "/v1/chat/completions"), ("POST", "/quit"), ("DELETE", "/models/dummy")):
      assert ask(node, method, path, {"Origin": origin, **JSON}, CHAT)[0] == 403
  assert ask(node, "POST", "/v1/chat/completions", {"Origin": node.url, **JSON}, CHAT)[0] == 200
  assert node.process.poll() is None


_TRIED = [next(route for route in ROUTES if route[0] == method) for method in ("GET", "POST", "DELETE")]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_09_a_key_covers_everything(keyed: NodeProcess, method: str, path: str) -> None:
  wrong = [{}, {"Authorization": "Bearer "}, {"Authorization": f"Basic {KEY}"}, {"Authorization": f"Bearer {KEY}x"},
           {"Authorization": f"Bearer {KEY[:-1]}"}, {"x-api-key": KEY.upper()}, {"x-api-key": "\xff" * 9},
           {"Authorization": KEY}, {"Cookie": f"key={KEY}"}]  # yapf: disable
  if (method, path) not in _TRIED:  # wrong keys are answered slowly, see test_sick_starts.py
    wrong = [headers for headers in wrong if "x-api-key" not in headers and "Bearer" not in str(headers)]
  for headers in wrong:
    status, answered, body = ask(keyed, method, path, headers | JSON, CHAT if method == "POST" else None)
    assert status == 401 and answered["www-authenticate"].startswith("Bearer") and KEY not in body.decode()
  assert ask(keyed, method, f"{path}?api_key={KEY}", JSON)[0] == 401


def test_09_health_and_the_page_are_open_and_the_key_opens_the_rest(keyed: NodeProcess) -> None:
  for path in ("/health", "/healthcheck", "/", "/static/style.css"):
    assert ask(keyed, "GET", path)[0] == 200
  assert ask(keyed, "GET", "/static/../v1/topology")[0] in (401, 404)
  for headers in ({"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY}"}, {"x-api-key": KEY}):
    assert ask(keyed, "POST", "/v1/chat/completions", headers | JSON, CHAT)[0] == 200


def test_09_keys_are_hashed_and_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  store = ApiKeyStore(tmp_path)
  texts = {name: store.add(name) for name in ("ann", "bob", "eve")}
  assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
  assert not any(text in store.path.read_text() or text[4:] in store.path.read_text() for text in texts.values())
  compared: list[int] = []
  real = keys.hmac.compare_digest
  monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append(len(a)) or real(a, b))
  accepted = ApiKeys("given", store)
  for text, name in ((texts["ann"], "ann"), (texts["eve"], "eve"), ("given", "--api-key"), ("", None),
                     ("é" * 999, None)):
    compared.clear()
    found = accepted.find(text)
    assert (None if found is None else found.name) == name
    assert compared == [64] * 4  # every key, whichever matched, and digests of one length


def test_09_keys_come_and_go_while_the_node_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(keys, "_LOOK_EVERY_S", 0.0)
  store = ApiKeyStore(tmp_path)
  accepted = ApiKeys(None, store)
  assert not accepted.required
  text = store.add("ann")
  assert accepted.required and (found := accepted.find(text)) is not None and found.name == "ann"
  store.remove("ann")
  assert accepted.required and accepted.find(text) is None  # it does not fall open
  store.path.write_text("{broken")
  assert accepted.find(text) is None
  with pytest.raises(ConfigError, match="cannot be read"):
    ApiKeys(None, store)
  for name in ("", "../x", "a b", "x" * 65):
    with pytest.raises(ConfigError):
      ApiKeyStore(tmp_path / "other").add(name)


# 10: what only this machine may do


def test_10_the_runtime_file_is_private_and_its_token_works_here(keyed: NodeProcess, node: NodeProcess) -> None:
  path = keyed.runtime_file
  assert stat.S_IMODE(path.stat().st_mode) == 0o600
  token = info_of(keyed)["token"]
  assert len(token) >= 43 and token != info_of(node)["token"] and token not in keyed.log
  assert ask(keyed, "GET", "/v1/models", {"Authorization": f"Bearer {token}"})[0] == 200
  for other in (token[:-1], info_of(node)["token"], ""):
    assert ask(keyed, "GET", "/v1/models", {"Authorization": f"Bearer {other}"})[0] == 401
  forwarded = {"Authorization": f"Bearer {token}", "X-Forwarded-For": "192.168.1.9"}
  assert ask(keyed, "GET", "/v1/models", forwarded)[0] == 401


def test_10_with_a_key_quit_download_and_deletes_want_it(keyed: NodeProcess) -> None:
  for method, path in (("POST", "/quit"), ("POST", "/download"), ("DELETE", "/models/x"), ("DELETE", "/v1/models/x")):
    assert ask(keyed, method, path, JSON, "{}")[0] == 401
  assert keyed.process.poll() is None


def test_10_without_a_key_they_are_for_this_machine(node: NodeProcess) -> None:
  """A proxy that runs here speaks for others; for requests from elsewhere see the test with namespaces below."""
  for method, path in (("POST", "/quit"), ("POST", "/download"), ("DELETE", "/models/x"), ("DELETE", "/v1/models/x")):
    for header in ("X-Forwarded-For", "Forwarded", "Via"):
      assert ask(node, method, path, {header: "for=192.168.1.9", **JSON}, "{}")[0] == 403
  # a handler knows that there is no such model, nobody before it does
  for method, path, body in (("DELETE", "/models/no-such-model", "{}"), ("DELETE", "/v1/models/no-such-model", "{}"),
                             ("POST", "/download", '{"model": "no-such-model"}')):
    status, _, answer = ask(node, method, path, JSON, body)
    assert status == 404 and "no-such-model" in str(answer), (path, answer)
  assert node.process.poll() is None


@pytest.mark.network
def test_10_from_another_machine_they_are_refused(node: NodeProcess) -> None:
  if os.geteuid() != 0 or shutil.which("ip") is None:
    pytest.skip("network namespaces need root and iproute2")
  name = f"exo{os.getpid()}"
  setup = [f"ip netns add {name}", f"ip link add {name}a type veth peer name {name}b netns {name}",
           f"ip addr add 10.213.7.1/24 dev {name}a", f"ip link set {name}a up",
           f"ip -n {name} addr add 10.213.7.2/24 dev {name}b", f"ip -n {name} link set {name}b up"]  # yapf: disable
  code = """
import http.client, sys
for method, path in (("GET", "/v1/topology"), ("POST", "/quit"), ("POST", "/download"), ("DELETE", "/models/dummy")):
  c = http.client.HTTPConnection("10.213.7.1", int(sys.argv[1]), timeout=10)
  c.request(method, path, "{}" if method == "POST" else None, {"Content-Type": "application/json"})
  print(c.getresponse().status)
"""
  try:
    for line in setup:
      if subprocess.run(line.split(), check=False, capture_output=True).returncode:
        pytest.skip("network namespaces cannot be made here")
    port = node.url.rpartition(":")[2]
    time.sleep(10.5)  # the node looks at its own addresses every ten seconds
    done = subprocess.run(["ip", "netns", "exec", name, sys.executable, "-c", code, port],
                          capture_output=True,
                          text=True,
                          timeout=60,
                          check=False)
    assert done.stdout.split() == ["200", "403", "403", "403"], done.stderr
    assert node.process.poll() is None
  finally:
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    subprocess.run(["ip", "link", "del", f"{name}a"], check=False, capture_output=True)


# 11: bounds


@asynccontextmanager
async def serving(home: Path, **fields: Any) -> AsyncIterator[RunningNode]:
  """A real node in this process, so that deadlines can be made short."""
  config: Config = config_from({
      "inference_engine": "dummy", "default_model": "dummy", "discovery_module": "none", "chatgpt_api_port": 0,
      "node_id": "n", "node_host": "127.0.0.1"
  } | fields, {"EXO_HOME": str(home)})
  async with running_node(config, lambda: None) as running:
    yield running


async def send(running: RunningNode, *parts: bytes, pause_s: float = 0.0, timeout_s: float = 15.0) -> bytes:
  """What the node answers before it ends the connection."""
  reader, writer = await asyncio.open_connection("127.0.0.1", running.info.api_port)
  try:
    async with asyncio.timeout(timeout_s):
      for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause_s)
      return await reader.read()
  except ConnectionError:
    return b""
  finally:
    writer.close()


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_11_headers_that_come_too_slowly_end_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(chatgpt_api, "HEADER_TIMEOUT_S", 1.0)

  async def scenario() -> None:
    async with serving(tmp_path) as running:
      began = time.monotonic()
      drips = [b"GET /health HTTP/1.1\r\n", *(b"X-A: b\r\n" for _ in range(40))]
      for parts in ((b"", ), drips):  # says nothing; drips headers for ever
        await send(running, *parts, pause_s=0.2)
        await asyncio.sleep(0)
      assert time.monotonic() - began < 14
      await until(lambda: len(running.api.connections) == 0)

  asyncio.run(scenario())


async def until(condition: Any, timeout_s: float = 10.0) -> None:
  async with asyncio.timeout(timeout_s):
    while not condition():  # noqa: ASYNC110 - of what the node does there is no event
      await asyncio.sleep(0.02)


def test_11_bodies_that_come_too_slowly_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(request_body, "BODY_TIMEOUT_S", 0.5)

  async def scenario() -> None:
    async with serving(tmp_path) as running:
      answer = await send(running, HEAD + b"Content-Length: 1000\r\n\r\n", *(b" " for _ in range(10)), pause_s=0.1)
      assert b" 408 " in answer.split(b"\r\n")[0]
      await until(lambda: len(running.api.connections) == 0)

  asyncio.run(scenario())


def test_11_connections_are_bounded_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(connections, "MAX_CONNECTIONS", 40)

  async def scenario() -> None:
    async with serving(tmp_path) as running:
      held = [await asyncio.open_connection("127.0.0.1", running.info.api_port) for _ in range(60)]
      await until(lambda: len(running.api.connections) == 30)  # one address gets three quarters
      refused = await asyncio.gather(*(reader.read() for reader, _ in held[:30]))  # the longest silent give way
      assert all(answer.startswith(b"HTTP/1.1 503") and b"too many connections" in answer for answer in refused)
      for _, writer in held:
        writer.close()
      await until(lambda: len(running.api.connections) == 0)
      assert b" 200 " in await send(running, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

  asyncio.run(scenario())


def test_11_a_client_that_does_not_read_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(connections.ConnectionTable.__init__, "__defaults__", (None, 1.0))
  # eight choices that never end, each token with twenty others: far more than the buffers on the way hold
  greedy = {
      "stream": True, "max_tokens": 8000, "logprobs": True, "top_logprobs": 20, "n": 8, "logit_bias": {"256": -100}
  }
  body = json.dumps(json.loads(CHAT) | greedy).encode()

  async def scenario() -> None:
    async with serving(tmp_path) as running:
      sock = socket.socket()
      sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
      sock.connect(("127.0.0.1", running.info.api_port))
      sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
      try:
        await until(lambda: len(running.node.desk) == 1)
        await until(lambda: len(running.node.desk) == 0 and len(running.api.connections) == 0, 30)
      finally:
        sock.close()

  asyncio.run(scenario())


def test_11_bodies_are_bounded(node: NodeProcess) -> None:
  deep = "[" * 100 + "]" * 100
  unfinished = CHAT[:-1]
  cases = [
      (JSON | {"Content-Length": str(17 * 2**20)}, None, 413),
      (JSON, json.dumps({"messages": [{"role": "user", "content": "x" * (17 * 2**20)}]}), 413),
      (JSON | {"Content-Encoding": "gzip"}, CHAT, 400),
      (JSON | {"Content-Encoding": "br"}, CHAT, 415),
      (JSON, unfinished.replace('"hello"', f'"x", "tool_calls": [{{"a": {deep}}}]') + "}", 400),
      (JSON, f'{{"unknown": {deep}}}', 400),
      (JSON, "[" * 1_000_000, 400),
      (JSON, unfinished + ', "n": 129}', 400),
      (JSON, unfinished + f', "stop": {json.dumps(["x"] * 65)}}}', 400),
      (JSON, unfinished + f', "stop": "{"x" * 5000}"}}', 400),
      (JSON, json.dumps(json.loads(CHAT) | {"logit_bias": dict.fromkeys(map(str, range(2000)), 1)}), 400),
      (JSON, json.dumps({"messages": [{"role": "user", "content": ""}] * 5000}), 400),
      (JSON, json.dumps({"messages": [{"role": "user", "content": "x" * 300_000}], "max_tokens": 1}), 400),
  ]
  for headers, body, expected in cases:
    try:
      status, _, answer = ask(node, "POST", "/v1/chat/completions", headers, body)
    except (BrokenPipeError, ConnectionResetError):  # ended while the body was still being sent
      continue
    assert status == expected, (body or "")[:80]
    assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}
  assert ask(node, "POST", "/v1/chat/completions", JSON, CHAT)[0] == 200
  assert ask(node, "GET", "/" + "x" * 20_000)[0] in (400, 414)
  assert ask(node, "GET", "/health", {f"X-{i}": "y" for i in range(300)})[0] == 400


def test_11_depth_is_counted_outside_of_strings() -> None:
  assert not deeper_than(json.dumps({"code": "[[[[" * 500}).encode(), 10)
  assert not deeper_than(json.dumps([[1]] * 1000).encode(), 10)
  assert not deeper_than(json.dumps({"a": '\\"[[[[[[[[[[[['}).encode(), 10)
  assert deeper_than(b"[" * 11 + b"]" * 11, 10) and not deeper_than(b"[" * 10 + b"]" * 10, 10)
  assert deeper_than(b'{"a":' * 11, 10)
  began = time.monotonic()
  deeper_than(b'"' + b"\\" * 2_000_001, 0), deeper_than(b'["' * 1_000_000, 10)
  assert time.monotonic() - began < 20  # linear, whatever is thrown at it


# 12: logs and folders


def test_12_log_lines_cannot_be_forged(capsys: pytest.CaptureFixture[str]) -> None:
  log.set_level(1)
  try:
    log.log(1, "node %s", "a\x1b[2J\x07\r\nadmin logged in\x9b\u202e\u2028b")
    log.say("\x1b]0;title\x07")
  finally:
    log.set_level(0)
  lines = capsys.readouterr().err.split("\n")
  assert len(lines) == 3 and "\\x1b[2J" in lines[0] and "\\nadmin" in lines[0] and "\\u202e" in lines[0]
  assert all(character.isprintable() for character in "".join(lines))


def test_12_no_prompt_is_logged_and_nothing_raw(node: NodeProcess) -> None:
  """At DEBUG=2, through answers, streams and errors."""
  secret = "the-launch-code-is-0451"
  for body in (
      {"messages": [{"role": "user", "content": secret}], "max_tokens": 3},
      {"messages": [{"role": "user", "content": secret}], "max_tokens": 3, "stream": True},
      {"messages": [{"role": "user", "content": secret * 20000}]},
      {"messages": [{"role": "user", "content": [{"type": "image", "text": secret}]}]},
      {"messages": [{"role": "user", "content": secret}], "temperature": 9},
      {"messages": [{"role": "user", "content": {secret: 1}}]},
  ):  # yapf: disable
    ask(node, "POST", "/v1/chat/completions", JSON, json.dumps(body))
  ask(node, "POST", "/v1/completions", JSON, json.dumps({"prompt": secret, "max_tokens": 3, "stop": [secret]}))
  ask(node, "POST", "/v1/chat/token/encode", JSON, json.dumps({"messages": [{"role": "user", "content": secret}]}))
  ask(node, "POST", "/v1/chat/completions", JSON, f'{{"messages": "{secret}')
  ask(node, "GET", "/v1/models/%1b%5b2Jforged%0d%c2%9b")
  node.wait_said("request chatcmpl-")
  node.wait_said("forged")
  assert secret not in node.log
  raw = node.log_path.read_bytes()
  assert b"\x1b" not in raw and b"forged" in raw and b"\xc2\x9b" not in raw


def test_12_folders_are_private_and_none_is_shared(tmp_path: Path) -> None:
  temporary, home = tmp_path / "tmp", tmp_path / "a" / "b" / "home"
  temporary.mkdir()
  before = set(Path("/tmp").iterdir())
  code = "import os, sys; os.umask(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
  environment = os.environ | {"EXO_HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
  process = subprocess.Popen([
      sys.executable, "-c", code, "-m", "exo", *BASE, "--chatgpt-api-port", "0", "--disable-tui"
  ],
                             cwd=ROOT,
                             env=environment,
                             stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
  try:
    wait_until(lambda: list((home / ".exo" / "nodes").glob("*.json")), 30, "the runtime file")
    for path in (tmp_path / "a", *(tmp_path / "a").rglob("*")):
      assert (not path.is_dir() and path.suffix != ".json") or not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert not list(temporary.iterdir())
    assert not [p for p in set(Path("/tmp").iterdir()) - before if "exo" in p.name and p.owner() == "exo"]
  finally:
    process.terminate()
    process.wait(20)


# 13: the start says who may do what


def test_13_every_listener_is_printed_with_who_may_use_it(
    node: NodeProcess, keyed: NodeProcess, tmp_path: Path
) -> None:
  grpc, api = info_of(node)["grpc_port"], info_of(node)["api_port"]
  node.wait_said(f"0.0.0.0:{grpc} (gRPC) for anyone on this network")
  node.wait_said(f"(0.0.0.0:{api}) for whoever can reach it")
  assert node.log.count("WARNING: no cluster key: anyone on this network can join") == 1
  node.wait_said("WARNING: the API listens beyond this machine without a key")
  keyed.wait_said("for this machine only and has an API key")
  keyed.wait_said("also for pages of https://chat.example")
  assert "WARNING: the API" not in keyed.log and KEY not in keyed.log
  text = "cluster " * 5
  base = [flag for flag in BASE if flag not in ("--discovery-module", "none")]
  port = str(free_udp())
  other = NodeProcess(
      tmp_path, *base, "--listen-port", port, "--broadcast-port", port, "--cluster-key", text, node_id="other"
  ).wait_ready()
  other.stop()
  name = info_name(other)
  assert f"(gRPC) for nodes with cluster key {name}" in other.log
  assert f"0.0.0.0:{port} (UDP) for beacons of nodes with cluster key {name}" in other.log
  assert "WARNING" not in other.log and text.strip() not in other.log
  bound = {c.laddr.port for c in psutil.Process(node.process.pid).net_connections("tcp") if c.status == "LISTEN"}
  assert bound == {grpc, api}  # and there is no other


def free_udp() -> int:
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", 0))
    return int(sock.getsockname()[1])


def info_name(node: NodeProcess) -> str:
  return node.log.split("nodes with cluster key ")[1].split(",")[0].split()[0]
