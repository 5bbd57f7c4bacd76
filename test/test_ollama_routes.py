"""Issue 21, line 6: Ollama's routes, as its clients and its documentation use them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exo.api.keys import ApiKeyStore
from exo.api.tool_names import ToolNames
from exo.errors import InvalidRequestError
from test.support.http import connect
from test.support.hub import Hub, hub
from test.support.nodes import NodeProcess
from test.support.stores import write_big
from test.test_security_http import KEY, ask

DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy", "--discovery-module", "none")
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  started = NodeProcess(tmp_path_factory.mktemp("ollama"), *DUMMY, node_id="ollama")
  yield started.wait_ready()
  started.stop()


@pytest.fixture(scope="module")
def real(model_home: Path) -> Iterator[NodeProcess]:
  started = NodeProcess(model_home, "--discovery-module", "none", node_id="real")
  yield started.wait_ready()
  started.stop()


def lines(node: NodeProcess, path: str, body: Any, status: int = 200) -> list[dict[str, Any]]:
  connection = connect(node)
  connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
  response = connection.getresponse()
  assert response.status == status and response.headers["Content-Type"].startswith("application/x-ndjson")
  found = [json.loads(line) for line in response.read().splitlines()]
  connection.close()
  return found


def text_of(answers: list[dict[str, Any]]) -> str:
  return "".join(a["message"]["content"] if "message" in a else a["response"] for a in answers)


# what asks


def test_21_line_6_embeddings_of_one_and_several_texts(node: NodeProcess) -> None:
  one = node.post("/api/embed", {"model": "dummy:latest", "input": "a text"})[1]
  assert one["model"] == "dummy" and one["prompt_eval_count"] == 6 and one["total_duration"] > 0
  (vector, ) = one["embeddings"]
  assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-4)
  several = node.post("/api/embed", {"model": "dummy", "input": ["a text", "another"]})[1]["embeddings"]
  assert several[0] == pytest.approx(vector, abs=1e-6) and len(several) == 2
  short = node.post("/api/embed", {"model": "dummy", "input": "a text", "dimensions": 4})[1]["embeddings"][0]
  assert len(short) == 4 and sum(x * x for x in short) == pytest.approx(1, abs=1e-4)
  older = node.post("/api/embeddings", {"model": "dummy", "prompt": "a text"})[1]["embedding"]
  assert older == pytest.approx(vector, abs=1e-6)
  assert node.post("/api/embed", {"model": "dummy"})[1]["embeddings"] == []
  assert node.post("/api/embeddings", {"model": "dummy"})[1] == {"embedding": []}
  assert node.post("/api/embed", {"model": "dummy", "input": "x" * 9000})[1]["prompt_eval_count"] == 8192
  for wrong in ({"input": "x" * 9000, "truncate": False}, {"input": ["a", ""]}, {"input": ["a"] * 2049}, {"input": 5}):
    status, answer = node.post("/api/embed", {"model": "dummy"} | wrong)
    assert status == 400 and isinstance(answer["error"], str), answer


def test_21_line_6_context_goes_on(node: NodeProcess) -> None:
  first = node.post(
      "/api/generate", {"model": "dummy", "prompt": "one", "stream": False, "options": {"num_predict": 5}}
  )[1]
  assert len(first["context"]) == first["prompt_eval_count"] + 5
  second = {"model": "dummy", "prompt": "two", "context": first["context"], "options": {"num_predict": 5}}
  streamed = lines(node, "/api/generate", second)
  assert streamed[-1]["prompt_eval_count"] == len(first["context"]) + len("user: two\n")
  assert streamed[-1]["context"][:len(first["context"])] == first["context"]
  assert text_of(streamed) == node.post("/api/generate", second | {"stream": False})[1]["response"]
  raw = node.post("/api/generate", second | {"stream": False, "raw": True})[1]
  assert raw["prompt_eval_count"] == len(first["context"]) + len("two")
  for wrong in ([-1], [10**9], ["a"]):
    assert node.post("/api/generate", second | {"context": wrong})[0] == 400


def test_21_line_6_a_real_model_remembers_by_context(real: NodeProcess) -> None:
  """What is asked with the context of an answer is what the same chat would ask."""
  asked = ("What is the capital of France? Answer in one sentence.", "And of Italy? Answer in one sentence.")
  options = {"temperature": 0, "num_predict": 60}
  body = {"model": "smollm2-135m", "stream": False, "options": options}
  first = real.post("/api/generate", body | {"prompt": asked[0]})[1]
  second = real.post("/api/generate", body | {"prompt": asked[1], "context": first["context"]})[1]
  assert first["done_reason"] == "stop" and "Paris" in first["response"], first
  turns = [{"role": "user", "content": asked[0]}, {"role": "assistant", "content": first["response"]},
           {"role": "user", "content": asked[1]}]  # yapf: disable
  chat = real.post("/api/chat", body | {"messages": turns})[1]
  # the template begins every chat with a system message of its own, the second turn has it once more
  assert second["prompt_eval_count"] >= chat["prompt_eval_count"] and second["done"]


def test_21_line_6_options_of_the_documentation(node: NodeProcess) -> None:
  options = {
      "num_keep": 5, "seed": 42, "num_predict": 10, "top_k": 20, "top_p": 0.9, "min_p": 0.0, "typical_p": 0.7,
      "repeat_last_n": 33, "temperature": 0.8, "repeat_penalty": 1.2, "presence_penalty": 1.5, "frequency_penalty": 1.0,
      "penalize_newline": True, "stop": ["\n", "user:"], "numa": False, "num_ctx": 1024, "num_batch": 2, "num_gpu": 1,
      "main_gpu": 0, "use_mmap": True, "num_thread": 8, "mirostat": 0, "mirostat_tau": 0.8, "mirostat_eta": 0.6
  }
  body = {"model": "dummy", "prompt": "Why is the sky blue?", "stream": False, "options": options}
  status, answer = node.post("/api/generate", body)
  assert status == 200 and answer["done"], answer
  assert node.post("/api/generate", body)[1]["response"] == answer["response"]
  mirostat = {
      "model": "dummy", "prompt": "x", "stream": False, "options": {"mirostat": 2, "num_predict": 5, "temperature": 1}
  }
  assert node.post("/api/generate", mirostat)[0] == 200
  for name, value in (("tfs_z", 0.5), ("penalize_newline", False), ("mirostat", 3), ("typical_p", 2), ("top_p", -1)):
    status, answer = node.post("/api/generate", body | {"options": {name: value}})
    assert status == 400 and name in answer["error"], answer


def test_21_line_6_names_of_tools_may_be_anything(node: NodeProcess) -> None:
  names = ["get weather", "ns:tool", "天気", "plain", "ns_tool", "x" * 128]
  parameters = {
      "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False
  }
  tools = [{"function": {"name": name, "parameters": parameters}} for name in names]
  history = [
      *HELLO, {"role": "assistant", "tool_calls": [{"function": {"name": "ns:tool", "arguments": {"a": 1}}}]},
      {"role": "tool", "tool_name": "ns:tool", "content": "12"}
  ]
  body = {"model": "dummy", "messages": history, "tools": tools, "stream": False, "options": {"num_predict": 5}}
  assert node.post("/api/chat", body)[0] == 200
  for wrong in ("", "x" * 129):
    assert node.post("/api/chat", body | {"tools": [{"function": {"name": wrong}}]})[0] == 400
  known = ToolNames(names)
  written = [known.written(name) for name in names]
  assert len(set(written)) == len(names) and [known.own(name) for name in written] == names
  assert all(name.isascii() and " " not in name and ":" not in name for name in written)
  assert known.written("plain") == "plain" and known.written("ns_tool") == "ns_tool" and known.own("other") == "other"
  with pytest.raises(InvalidRequestError):
    ToolNames([""])


def test_21_line_6_thinking_and_beginnings_of_answers(node: NodeProcess) -> None:
  for think in (True, False, "low", "high"):
    assert node.post("/api/chat", {"model": "dummy", "messages": HELLO, "think": think, "stream": False})[0] == 200
  assert node.post("/api/chat", {"model": "dummy", "messages": HELLO, "think": "much"})[0] == 400
  options = {"num_predict": 20}
  whole = node.post("/api/chat",
                    {"model": "dummy", "messages": HELLO, "stream": False, "options": options})[1]["message"]["content"]
  begun = [*HELLO, {"role": "assistant", "content": whole[:8]}]
  later = node.post(
      "/api/chat", {"model": "dummy", "messages": begun, "stream": False, "options": {"num_predict": 12}}
  )[1]
  assert later["message"]["content"] == whole[8:]


def test_21_line_5_line_6_raw_prompts_are_held_to_a_format(real: NodeProcess) -> None:
  """As chats are: a constraint is not passed over because no template is used."""
  body = {
      "model": "smollm2-135m", "prompt": "The weather is", "raw": True, "stream": False, "options": {"num_predict": 60}
  }
  schema = {
      "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False
  }
  answer = json.loads(real.post("/api/generate", body | {"format": schema})[1]["response"])
  assert list(answer) == ["a"] and isinstance(answer["a"], int)
  assert isinstance(json.loads(real.post("/api/generate", body | {"format": "json"})[1]["response"]), dict)
  assert real.post("/api/generate", body | {"format": "xml"})[0] == 400


# what tells


def test_21_line_6_what_is_loaded_and_unloaded(node: NodeProcess) -> None:
  def loaded() -> list[str]:
    return [model["name"] for model in node.get("/api/ps")[1]["models"]]

  assert node.post("/api/generate", {"model": "dummy"})[1]["done_reason"] == "load"
  assert loaded() == ["dummy"]
  (model, ) = node.get("/api/ps")[1]["models"]
  assert model["context_length"] and model["expires_at"] and model["digest"] and model["details"]["family"]
  answer = node.post("/api/chat", {"model": "dummy", "messages": HELLO, "stream": False, "keep_alive": 0})[1]
  assert answer["done"] and loaded() == []
  assert node.post("/api/chat",
                   {"model": "dummy", "messages": []})[1]["done_reason"] == "load" and loaded() == ["dummy"]
  assert node.post("/api/generate",
                   {"model": "dummy", "keep_alive": "0s"})[1]["done_reason"] == "unload" and loaded() == []
  for stays in ("5m", -1, "-1", 300, "1h30m", 0.5):
    body = {"model": "dummy", "messages": HELLO, "stream": False, "keep_alive": stays}
    assert node.post("/api/chat", body)[0] == 200 and loaded() == ["dummy"], stays
  assert node.post("/api/chat", {"model": "dummy", "messages": HELLO, "keep_alive": "soon"})[0] == 400


def test_21_line_6_tags_and_show_tell_what_is(real: NodeProcess) -> None:
  tag = next(model for model in real.get("/api/tags")[1]["models"] if model["name"] == "smollm2-135m")
  assert tag["size"] > 90_000_000 and len(tag["digest"]) == 64 and tag["modified_at"].endswith("Z")
  details = tag["details"]
  assert (details["family"], details["quantization_level"], details["parameter_size"]) == ("llama", "Q4_1", "135M")
  for name in ("smollm2-135m", "smollm2-135m:latest"):
    for field in ("model", "name"):
      shown = real.post("/api/show", {field: name})[1]
      assert shown["details"] == details and shown["capabilities"] == ["completion", "embedding"]
      assert shown["model_info"]["llama.context_length"] == 8192 and "messages" in shown["template"]
      assert shown["model_info"]["general.parameter_count"] > 130_000_000
  assert real.post("/v1/chat/completions",
                   {"model": "smollm2-135m:latest", "messages": HELLO, "max_tokens": 1})[0] == 200


def test_21_line_6_another_name_for_a_model(node: NodeProcess) -> None:
  body = json.dumps({"source": "dummy", "destination": "other:latest"})
  assert ask(node, "POST", "/api/copy", {"Content-Type": "application/json"}, body)[::2] == (200, b"")
  assert {"dummy", "other"} == {model["name"] for model in node.get("/api/tags")[1]["models"]}
  for path, body in (("/api/chat", {"messages": HELLO,
                                    "stream": False}), ("/v1/chat/completions", {"messages": HELLO})):
    assert node.post(path, {"model": "other"} | body)[1]["model"] == "dummy"
  assert node.post("/api/show", {"model": "other"})[0] == 200
  for source, destination in (("nosuch", "b"), ("dummy", "dummy"), ("dummy", "with space"), ("dummy", "smollm2-135m")):
    status, answer = node.post("/api/copy", {"source": source, "destination": destination})
    assert status in (400, 404) and isinstance(answer["error"], str)
  assert ask(node, "DELETE", "/api/delete", {"Content-Type": "application/json"}, '{"model": "other"}')[0] == 200
  assert node.post("/api/chat", {"model": "other", "messages": HELLO})[0] == 404
  status, _, data = ask(node, "DELETE", "/api/delete", {"Content-Type": "application/json"}, '{"name": "nosuch"}')
  assert status == 404 and "nosuch" in json.loads(data)["error"]


def test_21_line_6_what_exo_does_not_do_is_said(node: NodeProcess) -> None:
  for path, named in (("/api/create", "--model-dir"), ("/api/push", "hub")):
    status, answer = node.post(path, {"model": "mine", "from": "dummy"})
    assert status == 409 and named in answer["error"]


# fetching


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NodeProcess, Hub]]:
  folder = tmp_path_factory.mktemp("pull")
  with hub({"org/big": write_big(folder / "repo", 6)}) as server:
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(folder / "hf")}
    started = NodeProcess(folder / "home", *DUMMY, node_id="pull", env=env)
    yield started.wait_ready(), server
    started.stop()


def test_21_line_6_pull_tells_how_far_it_is_and_delete_deletes(fetched: tuple[NodeProcess, Hub]) -> None:
  node, server = fetched
  server.faults.bytes_per_s = 4e6
  told = lines(node, "/api/pull", {"model": "org/big", "insecure": False})
  assert told[0] == {"status": "pulling manifest"} and told[-1] == {"status": "success"}
  pulling = [line for line in told if "total" in line]
  assert pulling and all(
      line["completed"] <= line["total"] and line["digest"] in f"sha256:{line['digest']}" for line in pulling
  )
  assert pulling[-1]["completed"] == pulling[-1]["total"] > 6_000_000
  server.faults.bytes_per_s = None
  assert node.post("/api/pull", {"name": "org/big", "stream": False})[1] == {"status": "success"}
  assert ask(node, "DELETE", "/api/delete", {}, '{"model": "org/big"}')[0] == 200
  failed = lines(node, "/api/pull", {"model": "org/none"})
  assert isinstance(failed[-1]["error"], str) and "org/none" in failed[-1]["error"]
  status, answer = node.post("/api/pull", {"model": "org/none", "stream": False})
  assert status in (404, 503) and isinstance(answer["error"], str)


# errors and rights


def test_21_line_6_line_10_errors_are_texts(node: NodeProcess) -> None:
  for path, body in (
      ("/api/chat", {"model": "nosuch", "messages": HELLO}), ("/api/generate", {"model": "nosuch", "prompt": "x"}),
      ("/api/show", {"model": "nosuch"}), ("/api/show", {}), ("/api/embed", {"model": "nosuch", "input": "x"}),
      ("/api/chat", {"messages": "x"}), ("/api/nothing", {}), ("/api/pull", {})
  ):  # yapf: disable
    status, answer = node.post(path, body)
    assert 400 <= status < 500 and list(answer) == ["error"] and isinstance(answer["error"], str), (path, answer)
  status, _, data = ask(node, "GET", "/api/chat")
  assert status == 405 and isinstance(json.loads(data)["error"], str)
  status, _, data = ask(node, "POST", "/api/chat", {"Content-Type": "application/json", "Host": "evil.example"}, "{}")
  assert status == 403 and isinstance(json.loads(data)["error"], str)


def test_21_line_6_requirement_10_what_changes_the_node_wants_an_admin(tmp_path: Path) -> None:
  (tmp_path / ".exo").mkdir(mode=0o700)
  user = ApiKeyStore(tmp_path / ".exo").add("somebody", "user")
  started = NodeProcess(tmp_path, *DUMMY, node_id="rights", env={"EXO_API_KEY": KEY})
  try:
    started.wait_ready()
    json_type = {"Content-Type": "application/json"}
    for method, path, body in (
        ("POST", "/api/pull", {"model": "dummy"}), ("POST", "/api/copy", {"source": "dummy", "destination": "b"}),
        ("DELETE", "/api/delete", {"model": "b"}), ("POST", "/api/generate", {"model": "dummy", "keep_alive": 0}),
        ("POST", "/api/create", {"model": "b"}), ("POST", "/api/push", {"model": "b"})
    ):  # yapf: disable
      assert ask(started, method, path, json_type, json.dumps(body))[0] == 401
      mine = json_type | {"Authorization": f"Bearer {user}"}
      assert ask(started, method, path, mine, json.dumps(body))[0] == 403, path
    asking = json.dumps({"model": "dummy", "messages": HELLO, "stream": False, "keep_alive": 0})
    mine = json_type | {"Authorization": f"Bearer {user}"}
    assert ask(started, "POST", "/api/chat", mine, asking)[0] == 200  # it is answered, and others keep the model
    assert json.loads(ask(started, "GET", "/api/ps", mine)[2])["models"]
    admin = json_type | {"Authorization": f"Bearer {KEY}"}
    assert ask(started, "POST", "/api/chat", admin, asking)[0] == 200
    assert json.loads(ask(started, "GET", "/api/ps", admin)[2])["models"] == []
  finally:
    started.stop()
