"""Line 12, requirement 16: what one API key's client may do to others, and see of them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exo.api.keys import ApiKeys, ApiKeyStore
from exo.cli.key_command import key_command
from exo.errors import ConfigError
from exo.inference.dummy.engine import SLOW
from exo.inference.sampling import SamplingParams
from exo.networking.messages import Request
from exo.orchestration.kv_room import Limits
from exo.orchestration.scheduler import Scheduler
from test.support.http import call, connect
from test.support.hub import hub
from test.support.nodes import NodeProcess, wait_until
from test.test_scheduler import FakeRing

BASE = ("--inference-engine", "dummy", "--default-model", "dummy", "--discovery-module", "none")
GIVEN = "given-by-hand-0123456789"
LONG = "Tell me of the secret treasure of Rackham, " * 8


class Keyed:
  """A node with keys of each kind; `ask` is a request under one of them."""
  def __init__(self, home: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
    store = ApiKeyStore(home / ".exo")
    self.keys = {name: store.add(name, "user") for name in ("ann", "bob")}
    self.keys |= {"root": store.add("root"), "given": GIVEN}
    self.node = NodeProcess(home, *BASE, *arguments, node_id="keyed", env={"EXO_API_KEY": GIVEN, **(env or {})})
    self.node.wait_ready()
    folder = home / ".exo" / "nodes"
    self.keys["local"] = json.loads(next(folder.glob("*.json")).read_text())["token"]

  def ask(self, name: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {self.keys[name]}", "Content-Type": "application/json"}
    status, _, value = call(self.node, method, path, None if body is None else json.dumps(body).encode(), headers)
    return status, value

  def cached(self, name: str, prompt: str) -> int:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 2}
    status, answer = self.ask(name, "POST", "/v1/chat/completions", body)
    assert status == 200, answer
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
  with hub({}) as server:
    env = {"HF_ENDPOINT": server.url}
    started = Keyed(tmp_path_factory.mktemp("keyed"), "--chatgpt-api-host", "0.0.0.0", env=env)
    yield started
    started.node.stop()


# roles


def test_line_12_keys_have_a_role_and_those_of_before_are_admins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  environment = {"EXO_HOME": str(tmp_path)}
  store = ApiKeyStore(tmp_path / ".exo")
  texts = {}
  for name, role in (("plain", ()), ("guest", ("--role", "user")), ("boss", ("--role", "admin"))):
    assert key_command(["api", "new", name, *role], environment) == 0
    texts[name] = capsys.readouterr().out.strip()
  assert {key.name: key.role for key in store.stored()} == {"plain": "admin", "guest": "user", "boss": "admin"}
  key_command(["api", "ls"], environment)
  listed = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
  assert listed == {"plain": "admin", "guest": "user", "boss": "admin"}
  with pytest.raises(SystemExit):
    key_command(["api", "new", "x", "--role", "root"], environment)
  # a file of before
  content = json.loads(store.path.read_text())
  for entry in content["keys"]:
    del entry["role"]
  store.path.write_text(json.dumps(content))
  keys = ApiKeys(GIVEN, store)
  for text in (*texts.values(), GIVEN):
    assert (found := keys.find(text)) is not None and found.role == "admin"
  content["keys"][0]["role"] = "god"
  store.path.write_text(json.dumps(content))
  with pytest.raises(ConfigError, match="cannot be read"):
    store.stored()


CHANGES = [
    ("POST", "/quit", {}), ("POST", "/download", {"model": "org/name"}), ("DELETE", "/download/org/name", None),
    ("DELETE", "/models/dummy", None), ("DELETE", "/v1/models/dummy", None)
]  # yapf: disable


@pytest.mark.parametrize(("method", "path", "body"), CHANGES)
def test_line_12_what_changes_the_node_is_for_admins(keyed: Keyed, method: str, path: str, body: Any) -> None:
  status, answer = keyed.ask("ann", method, path, body)
  error = answer["error"]
  assert status == 403 and set(error) == {"message", "type", "param", "code"} and error["code"] == "admin_only"
  assert "admin" in error["message"] and keyed.node.process.poll() is None
  if path != "/quit":
    for name in ("root", "given", "local"):
      assert keyed.ask(name, method, path, body)[0] not in (401, 403), name


def test_line_12_every_route_that_is_not_for_asking_is_for_admins(keyed: Keyed) -> None:
  """Of the routes that there are, by the node's own document: who adds one that changes something need not think of it."""
  asking = {
      "/chat/completions", "/completions", "/chat/token/encode", "/embeddings", "/responses", "/messages",
      "/messages/count_tokens", "/cancel/{id}", "/api/chat", "/api/generate", "/api/show", "/responses/input_tokens",
      "/responses/compact", "/responses/{id}", "/responses/{id}/cancel", "/conversations", "/conversations/{id}",
      "/conversations/{id}/items", "/conversations/{id}/items/{item}", "/api/embed", "/api/embeddings", "/infill",
      "/rerank", "/v2/rerank", "/score", "/tokenize", "/detokenize", "/apply-template", "/documents/text"
  }
  paths = keyed.ask("root", "GET", "/openapi.json")[1]["paths"]
  refused = set()
  for path, methods in paths.items():
    for method in methods:
      if method not in ("get", "head"):
        status, answer = keyed.ask(
            "ann", method.upper(),
            path.replace("{id}", "resp_1").replace("{", "").replace("}", ""), {}
        )
        if path.removeprefix("/v1") in asking:
          assert status != 403, path
        else:
          error = answer["error"]  # a text on Ollama's routes
          assert status == 403 and (isinstance(error, str) or error["code"] == "admin_only"), path
          refused.add(path)
  assert {"/quit", "/download", "/models/{model}"} <= refused


def test_line_12_a_user_brings_no_model_here(keyed: Keyed) -> None:
  chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
  short = {"stream": False, "options": {"num_predict": 2}}
  asked = [("/v1/chat/completions", chat), ("/v1/completions", {"prompt": "hi", "max_tokens": 2}),
           ("/v1/embeddings", {"input": "hi"}), ("/v1/messages", chat),
           ("/v1/responses", {"input": "hi", "max_output_tokens": 2}), ("/v1/messages/count_tokens", chat),
           ("/api/chat", chat | short), ("/api/generate", {"prompt": "hi"} | short), ("/api/show", {}),
           ("/v1/chat/token/encode", chat)]
  for path, body in asked:
    for name in ("org/never-heard-of", "llama-3.2-1b"):
      status, answer = keyed.ask("ann", "POST", path, body | {"model": name})
      error = answer["error"]
      assert status == 403 and (isinstance(error, str) or error["code"] == "admin_only"), (path, answer)
      assert ("type" in answer) == path.startswith("/v1/messages")  # as Anthropic's clients know errors
    status, answer = keyed.ask("ann", "POST", path, body | {"model": "no such model"})
    assert status == 404, (path, answer)
    assert keyed.ask("ann", "POST", path, body | {"model": "dummy"})[0] == 200, path
  downloads = {d["model"] for d in keyed.ask("root", "GET", "/v1/download/progress")[1]["data"]}
  assert not downloads & {"org/never-heard-of", "llama-3.2-1b"}


# prefixes


def test_line_12_a_prefix_cache_tells_nothing_of_another_keys_prompts(keyed: Keyed) -> None:
  assert keyed.cached("ann", LONG) == 0
  assert keyed.cached("ann", LONG) > 100
  for name in ("bob", "root", "given", "local"):
    assert keyed.cached(name, LONG) == 0, name
    assert keyed.cached(name, LONG) > 100, name
  assert keyed.cached("ann", LONG) > 100  # what others sent since has not taken its place


def test_line_12_shared_prefixes_are_for_those_who_ask_for_them(tmp_path: Path) -> None:
  shared = Keyed(tmp_path, "--shared-prefixes")
  try:
    assert shared.cached("ann", LONG) == 0
    assert shared.cached("bob", LONG) > 100
  finally:
    shared.node.stop()


def test_line_12_without_keys_all_share_their_prefixes(tmp_path: Path) -> None:
  node = NodeProcess(tmp_path, *BASE, "--trusted-proxy", "127.0.0.1", node_id="open").wait_ready()
  try:
    body = json.dumps({"messages": [{"role": "user", "content": LONG}], "max_tokens": 2}).encode()
    cached = []
    for address in ("198.51.100.1", "198.51.100.2"):
      headers = {"Content-Type": "application/json", "X-Forwarded-For": address}
      answer = call(node, "POST", "/v1/chat/completions", body, headers)[2]
      cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == 0 and cached[1] > 100
  finally:
    node.stop()


def test_line_12_caches_that_run_or_are_kept_are_found_by_their_own_salt_alone() -> None:
  def request(name: str, salt: str, prompt: int = 60, max_tokens: int = 40) -> Request:
    ids = tuple(range(10, 10 + prompt))
    return Request(name, "entry", ids, max_tokens, frozenset({0}), SamplingParams(), cache_salt=salt)

  scheduler = Scheduler(Limits(max_sequences=8, max_kv_tokens=4000, max_context=512, step_tokens=64))
  ring = FakeRing(scheduler)
  opened: dict[str, tuple[int, int]] = {}

  def turns(count: int) -> None:
    for _ in range(count):
      ring.let_out()
      for step in ring.in_flight:
        opened.update({o.request.request_id: (o.source, o.reused) for o in step.opens})
        assert not any(o.request.cache_salt or o.request.share for o in step.opens), "the last stage need not know"
      if not ring.turn():
        break

  scheduler.add(request("first", "a"))
  turns(4)
  scheduler.add(request("other", "b"))  # while the first runs
  scheduler.add(request("nobody", ""))
  scheduler.add(request("same", "a"))
  turns(200)
  assert opened["other"][1] == opened["nobody"][1] == 0 and opened["same"][1] > 0
  for name, salt, reused in (("late b", "b", True), ("late c", "c", False), ("late nobody", "", True)):
    scheduler.add(request(name, salt))  # from what is kept
    turns(200)
    assert (opened[name][1] > 0) == reused, name


# requests of others


class Streaming:
  """A long answer of one key, under way."""
  def __init__(self, keyed: Keyed, name: str) -> None:
    self.lines: list[str] = []
    self._keyed, self._name = keyed, name
    self._thread = threading.Thread(target=self._run)
    self._thread.start()
    wait_until(lambda: len(self.lines) > 5, 30, "the beginning of an answer")
    self.id = json.loads(self.lines[0][6:])["id"].partition(".")[0]

  def _run(self) -> None:
    connection = connect(self._keyed.node)
    body = {"prompt": [SLOW, 70, 71], "max_tokens": 8000, "logit_bias": {"256": -100}, "stream": True}
    headers = {"Authorization": f"Bearer {self._keyed.keys[self._name]}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    for line in connection.getresponse():
      if line.startswith(b"data: "):
        self.lines.append(line.decode().strip())
    connection.close()

  def end(self) -> str:
    """The last line but `[DONE]`."""
    self._thread.join(30)
    assert not self._thread.is_alive()
    return self.lines[-2]


@pytest.mark.parametrize("who", ["ann", "root", "given", "local"])
def test_line_12_its_owner_or_an_admin_cancels_a_request_and_nobody_else(keyed: Keyed, who: str) -> None:
  running = Streaming(keyed, "ann")
  unknown = keyed.ask("bob", "POST", "/v1/cancel/chatcmpl-unknown", {})
  refused = keyed.ask("bob", "POST", f"/v1/cancel/{running.id}", {})
  assert refused[0] == unknown[0] == 404
  assert json.dumps(refused[1]).replace(running.id, "ID") == json.dumps(unknown[1]).replace("chatcmpl-unknown", "ID")
  before = len(running.lines)
  wait_until(lambda: len(running.lines) > before, 20, "more of the answer")
  assert keyed.ask(who, "POST", f"/v1/cancel/{running.id}", {})[0] == 200
  assert "cancelled" in running.end()


def test_line_12_nothing_that_a_user_may_read_tells_of_anothers_requests(keyed: Keyed) -> None:
  secret = "the-treasure-of-Rackham"
  body = {"messages": [{"role": "user", "content": secret}], "max_tokens": 40}
  answer = keyed.ask("ann", "POST", "/v1/chat/completions", body)[1]
  running = Streaming(keyed, "ann")
  told = [secret, answer["id"], answer["choices"][0]["message"]["content"], running.id]
  told += keyed.keys.values()
  seen = []
  for path, methods in keyed.ask("bob", "GET", "/openapi.json")[1]["paths"].items():
    if "get" in methods and "{" not in path:
      seen.append(path)
      text = first_of_stream(keyed, path) if path.endswith("stream") else json.dumps(keyed.ask("bob", "GET", path)[1])
      for word in told:
        assert word not in text, (path, word)
  assert {"/metrics", "/v1/topology", "/v1/topology/stream", "/v1/download/progress"} <= set(seen)
  keyed.ask("root", "POST", f"/v1/cancel/{running.id}", {})
  running.end()


def first_of_stream(keyed: Keyed, path: str) -> str:
  connection = connect(keyed.node, 20)
  connection.request("GET", path, headers={"Authorization": f"Bearer {keyed.keys['bob']}"})
  response = connection.getresponse()
  text, until = "", time.monotonic() + 10
  while not text.count("data: ") and time.monotonic() < until:
    text += response.readline().decode()
  connection.close()
  return text
