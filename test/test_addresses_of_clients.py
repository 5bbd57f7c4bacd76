"""Issue 21, lines 7, 8 and 10: how clients, pages and proxies write addresses, bodies and headers, and what they get."""

from __future__ import annotations

import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from exo.api import host_rule
from exo.api.host_rule import HostRule
from exo.api.request_path import usual_path
from exo.errors import ConfigError
from exo.networking.adapters import Adapter
from exo.networking.address_rule import parse_address
from exo.origins import AllowedOrigins, check_origin
from test.support.nodes import NodeProcess
from test.test_security_http import BASE, JSON, KEY, ask

CHAT = json.dumps({"model": "dummy", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3})


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  flags = ("--cors-origin", "vscode-webview://*", "--cors-origin", "http://localhost:*", "--cors-origin", "null")
  proxy = ("--trusted-proxy", "127.0.0.1")
  started = NodeProcess(tmp_path_factory.mktemp("addresses"), *BASE, *flags, *proxy, node_id="addresses")
  yield started.wait_ready()
  started.stop()


# line 10: paths, methods, bodies, connections


@pytest.mark.parametrize(("target", "usual"), [
    ("/v1/models", "/v1/models"), ("//v1//models/", "/v1/models"), ("/v1/v1/models", "/v1/models"),
    ("/api/v1/chat/completions/", "/v1/chat/completions"), ("/v1/v1/v1/models?all=true", "/v1/models?all=true"),
    ("/openai/v1/models", "/v1/models"), ("/v1/api/tags", "/api/tags"), ("/", "/"), ("//", "/"), ("/?a=b//c/", "/?a=b//c/"),
    ("/v1/models/org/name", "/v1/models/org/name"), ("/api/tags", "/api/tags"), ("*", "*"), ("/v1x/v1/", "/v1x/v1")
])  # yapf: disable
def test_21_line_10_paths_mean_what_was_meant(target: str, usual: str) -> None:
  assert usual_path(target) == usual


@pytest.mark.parametrize(
    "path", [
        "//v1/models", "/v1//models", "/v1/models/", "/v1/v1/models", "/api/v1/models", "/models", "/health/",
        "/v1/api/version", "/api/version/", "//healthcheck"
    ]
)
def test_21_line_10_every_way_to_write_a_base_address_leads_there(node: NodeProcess, path: str) -> None:
  assert ask(node, "GET", path)[0] == 200


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/v1/chat/completions/", "/messages", "/responses"])
def test_21_line_10_routes_without_a_version(node: NodeProcess, path: str) -> None:
  body = json.loads(CHAT) | {"input": "hello"}
  status, _, data = ask(node, "POST", path, JSON, json.dumps(body))
  assert status == 200 and json.loads(data)["model"] == "dummy"


def test_21_line_10_head_and_options_are_answered(node: NodeProcess) -> None:
  for path in ("/", "/v1/models", "/health", "/api/tags", "/api/version"):
    status, headers, data = ask(node, "HEAD", path)
    assert (status, data) == (200, b"") and int(headers["content-length"]) > 0
  status, headers, data = ask(node, "OPTIONS", "/v1/chat/completions")
  assert (status, headers["allow"], data) == (204, "OPTIONS, POST", b"")
  assert ask(node, "OPTIONS", "/nowhere")[0] == 404
  status, headers, _ = ask(node, "GET", "/v1/chat/completions")
  assert status == 405 and headers["allow"] == "POST"


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("x-gzip", gzip.compress),
                                            ("deflate", zlib.compress)])
def test_21_line_10_packed_bodies_are_read(node: NodeProcess, name: str, pack) -> None:
  status, _, data = ask(node, "POST", "/v1/chat/completions", JSON | {"Content-Encoding": name}, pack(CHAT.encode()))
  assert status == 200 and json.loads(data)["usage"]["completion_tokens"] == 3


def test_21_line_10_packed_bodies_have_the_bounds_of_others(node: NodeProcess) -> None:
  def post(data: bytes, name: str = "gzip") -> tuple[int, str]:
    status, _, answer = ask(node, "POST", "/v1/chat/completions", JSON | {"Content-Encoding": name}, data)
    return status, json.loads(answer)["error"]["message"]

  assert post(gzip.compress(bytes(40 * 2**20)))[0] == 413
  assert post(b"no gzip at all")[0] == 400
  status, message = post(gzip.compress(CHAT.encode())[:-12])
  assert status == 400 and "breaks off" in message
  assert post(gzip.compress(b"[" * 100))[0] == 400
  status, message = post(CHAT.encode(), "zstd")
  assert status == 415 and "gzip" in message


def test_21_line_10_who_has_sent_everything_still_gets_an_answer(node: NodeProcess) -> None:
  """As `nc -N` and some libraries do; and whoever is gone altogether is noticed within the bound of requirement 22."""
  port = int(node.url.rpartition(":")[2])

  def answered(request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
      client.sendall(request)
      client.shutdown(socket.SHUT_WR)
      answer = b""
      while piece := client.recv(65536):
        answer += piece
      return answer

  chat = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(CHAT
                                                                                                      ) + CHAT.encode()
  assert ask(node, "POST", "/v1/chat/completions", JSON, CHAT)[0] == 200  # the model is there now
  for request in (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", chat):
    # it is kept for a second, in which a busy machine may not get to it
    answer = next((found for _ in range(10) if (found := answered(request))), b"")
    assert answer.startswith(b"HTTP/1.1 200") and answer.rstrip().endswith(b"}")


def test_21_line_10_probes_without_a_host(node: NodeProcess) -> None:
  port = int(node.url.rpartition(":")[2])
  for path, status in ((b"/health", b"200"), (b"/healthcheck", b"200"), (b"/v1/models", b"403")):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
      client.sendall(b"GET " + path + b" HTTP/1.0\r\n\r\n")
      assert client.recv(100).split()[1] == status


def test_21_line_10_the_page_asks_below_where_it_is(node: NodeProcess) -> None:
  """A proxy may show it under a path: nothing in it begins with a slash. `test_page.py` looks at it through one."""
  _, _, page = ask(node, "GET", "/")
  assert b'href="/' not in page and b'src="/' not in page
  for name in ("api", "chat", "models", "ring", "main"):
    _, _, script = ask(node, "GET", f"/static/{name}.js")
    assert script and not any(start in script for start in (b'"/v1', b"`/", b'"/mod', b'"/down', b'from "/'))


def test_21_line_10_a_proxy_says_where_its_page_is(node: NodeProcess) -> None:
  headers = JSON | {"Origin": "https://home.example", "X-Forwarded-For": "10.0.0.7"}
  assert ask(node, "POST", "/v1/chat/completions", headers, CHAT)[0] == 403
  assert ask(node, "POST", "/v1/chat/completions", headers | {"X-Forwarded-Host": "home.example"}, CHAT)[0] == 200
  assert ask(node, "POST", "/v1/chat/completions", headers | {"X-Forwarded-Host": "other.example"}, CHAT)[0] == 403


@pytest.mark.parametrize(
    "text",
    [b'"half \\ud83d of a character"', b'"\xff\xfe no UTF-8"', b'"both halves \\ud83d\\ude00"', b'"\\udead\\ud83d"']
)
def test_21_line_10_malformed_text_in_a_history_is_repaired(node: NodeProcess, text: bytes) -> None:
  body = b'{"model": "dummy", "max_tokens": 3, "messages": [{"role": "user", "content": %s}]}' % text
  status, _, data = ask(node, "POST", "/v1/chat/completions", JSON, body)
  assert status == 200, data


def test_21_line_10_empty_messages_in_a_history_are_no_reason_to_refuse(node: NodeProcess) -> None:
  for message in ({"role": "assistant"}, {"role": "assistant", "content": None}, {"role": "tool", "content": None},
                  {"role": "tool"}, {"role": "assistant", "content": []}):  # yapf: disable
    messages = [{"role": "user", "content": "hello"}, message, {"role": "user", "content": "again"}]
    body = json.dumps({"model": "dummy", "max_tokens": 3, "messages": messages})
    status, _, data = ask(node, "POST", "/v1/chat/completions", JSON, body)
    assert status == 200, (message, data)


# line 7: bodies of curl


def test_21_line_7_what_curl_sends_of_itself_is_read(node: NodeProcess) -> None:
  form = {"Content-Type": "application/x-www-form-urlencoded"}
  for headers in ({}, form, form | {"Sec-Fetch-Site": "same-origin"}):
    for path, key in (("/v1/chat/completions", "choices"), ("/api/chat", None), ("/v1/messages", "content")):
      status, _, data = ask(node, "POST", path, headers, CHAT)
      assert status == 200 and (key is None or key in json.loads(data)), (path, headers, data)


@pytest.mark.parametrize("headers", [
    {"Origin": "http://localhost:1234"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-site"}, {"Content-Type": "text/plain"}, {"Content-Type": "multipart/form-data; boundary=x"}
])  # yapf: disable
def test_21_line_7_requirement_9_what_a_page_can_send_unasked_is_not_read(
    node: NodeProcess, headers: dict[str, str]
) -> None:
  form = {"Content-Type": "application/x-www-form-urlencoded"}
  assert ask(node, "POST", "/v1/chat/completions", form | headers, CHAT)[0] == 415


def test_21_line_7_requirement_9_what_changes_the_node_wants_json(node: NodeProcess) -> None:
  for path in ("/download", "/quit"):
    assert ask(node, "POST", path, {}, json.dumps({"model": "dummy"}))[0] == 415


# line 8: origins and hosts


@pytest.mark.parametrize("origin", [
    "https://chat.example", "http://localhost:*", "http://127.0.0.1:*", "https://[::1]:*", "vscode-webview://*", "app://obsidian.md",
    "chrome-extension://abcdefgh", "tauri://localhost", "null", "http://10.0.0.1:8080", "vscode-webview://"
])  # yapf: disable
def test_21_line_8_origins_that_may_be_named(origin: str) -> None:
  check_origin(origin)


@pytest.mark.parametrize("origin", [
    "*", "https://*", "http://example.org:*", "https://*.example.org", "file://*", "https://example.org/path", "example.org", "",
    "data://*", "http://user@example.org"
])  # yapf: disable
def test_21_line_8_origins_that_mean_too_much_or_nothing(origin: str) -> None:
  with pytest.raises(ConfigError, match="--cors-origin"):
    check_origin(origin)


def test_21_line_8_which_pages_may() -> None:
  rule = AllowedOrigins(["https://Chat.example", "http://localhost:*", "http://[::1]:*", "app://*", "null"])
  for origin in (
      "https://chat.example", "http://localhost", "http://localhost:3000", "http://[::1]:80", "http://[::1]", "app://x"
  ):
    assert rule.allows(origin, keyed=False), origin
  for origin in (
      "https://chat.example:8443", "http://chat.example", "https://localhost:3000", "http://localhost.evil:80",
      "http://localhost:80.evil", "apps://x", "http://[::2]:80", "file://", "null"
  ):
    assert not rule.allows(origin, keyed=False), origin
  assert rule.allows("null", keyed=True) and not AllowedOrigins([]).allows("null", keyed=True)


def test_21_line_8_pages_that_may_and_what_others_are_told(node: NodeProcess) -> None:
  for origin in ("vscode-webview://1b2c-3d", "http://localhost:5173"):
    status, headers, _ = ask(node, "POST", "/v1/chat/completions", JSON | {"Origin": origin}, CHAT)
    assert status == 200 and headers["access-control-allow-origin"] == origin
  for origin, told in (("app://obsidian.md", "--cors-origin 'app://*'"),
                       ("https://evil.example", "--cors-origin https://evil.example"), ("file://", "--cors-origin"),
                       ("null", "API key"), ("https://" + "x" * 200, "--cors-origin ORIGIN")):
    status, headers, data = ask(node, "POST", "/v1/chat/completions", JSON | {"Origin": origin}, CHAT)
    assert status == 403 and told in json.loads(data)["error"]["message"], data
    assert "access-control-allow-origin" not in headers
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    status, _, data = ask(node, "OPTIONS", "/v1/chat/completions", asked)
    assert status == 403 and told in json.loads(data)["error"]["message"]


def test_21_line_8_null_together_with_a_key(tmp_path: Path) -> None:
  started = NodeProcess(tmp_path, *BASE, "--cors-origin", "null", node_id="null", env={"EXO_API_KEY": KEY})
  try:
    started.wait_ready()
    with_key = JSON | {"Origin": "null", "Authorization": f"Bearer {KEY}"}
    status, headers, _ = ask(started, "POST", "/v1/chat/completions", with_key, CHAT)
    assert status == 200 and headers["access-control-allow-origin"] == "null"
    assert ask(started, "POST", "/v1/chat/completions", JSON | {"Origin": "null"}, CHAT)[0] == 401
  finally:
    started.stop()


@pytest.mark.parametrize("host", ["192.0.2.7:52415", "[2001:db8::7]:52415", "203.0.113.9", "host.docker.internal:1"])
def test_21_line_8_addresses_of_published_ports_pass(node: NodeProcess, host: str) -> None:
  assert ask(node, "POST", "/v1/chat/completions", JSON | {"Host": host}, CHAT)[0] == 200


def test_21_line_8_names_of_the_container_host(monkeypatch: pytest.MonkeyPatch) -> None:
  bridge = Adapter("docker0", 3, (("172.17.0.1", 16), ))
  lan = Adapter("eth0", 2, (("192.0.2.5", 24), ))
  monkeypatch.setattr(host_rule, "adapters", lambda: [lan, bridge])
  monkeypatch.setattr(host_rule, "own_addresses", lambda: frozenset(map(parse_address, ("192.0.2.5", "172.17.0.1"))))
  rule = HostRule((), "0.0.0.0")
  for name in ("host.docker.internal", "host.containers.internal:80", "HOST.lima.internal."):
    for peer, may in (("172.17.0.9", True), ("127.0.0.1", True), ("192.0.2.5", True), ("192.0.2.9", False),
                      ("8.8.8.8", False)):
      assert rule.allows(name, parse_address(peer)) is may, (name, peer)
    assert not rule.allows(name, None)
  assert not rule.allows("evil.docker.internal", parse_address("127.0.0.1"))
  assert not rule.allows("", parse_address("127.0.0.1"))
