"""Numbers 28 to 38: text completions, models, the other ways to ask, errors."""

from __future__ import annotations

import base64
import json
import signal
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from test.support.http import assert_error, call, connect, raw_stream, stream_json
from test.support.nodes import NodeProcess, ring, wait_until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
JSON = {"Content-Type": "application/json"}
TOOL = {"name": "now", "description": "the time", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "ring of two"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  home = tmp_path_factory.mktemp("others")
  with ring(home, request.param, "--inference-engine", "dummy", "--default-model", "dummy") as started:
    yield started[-1]


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "ring of two"])
def real(request: pytest.FixtureRequest, model_home: Path) -> Iterator[NodeProcess]:
  with ring(model_home, request.param, "--inference-engine", "onnx") as started:
    yield started[-1]


@pytest.fixture
def client(node: NodeProcess) -> OpenAI:
  return OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0, timeout=120)


def complete(node: NodeProcess, **fields: Any) -> Any:
  status, answer = node.post(COMPLETIONS, {"max_tokens": 8} | fields)
  assert status == 200, answer
  return answer


def test_28_forms_of_prompts(node: NodeProcess) -> None:
  answer = complete(node, prompt="score this text")
  assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
  text = answer["choices"][0]["text"]
  ids = list(b"score this text")
  for prompt in (ids, ["score this text"], [ids]):
    assert [c["text"] for c in complete(node, prompt=prompt)["choices"]] == [text]
  alone = [complete(node, prompt=p)["choices"][0]["text"] for p in ("one", "two", "three")]
  several = complete(node, prompt=["one", "two", "three"])
  assert [c["text"] for c in several["choices"]] == alone and [c["index"] for c in several["choices"]] == [0, 1, 2]
  assert several["usage"]["prompt_tokens"] == 11 and several["usage"]["completion_tokens"] == 24
  streamed = ["", "", ""]
  for chunk in stream_json(node, COMPLETIONS, {"prompt": ["one", "two", "three"], "max_tokens": 8}):
    streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
  assert streamed == alone


def test_28_n_and_logprobs(node: NodeProcess) -> None:
  answer = complete(node, prompt=["one", "two"], n=2, temperature=1.0, seed=4, logprobs=5)
  assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3] and len({c["text"] for c in answer["choices"]}) == 4
  for choice in answer["choices"]:
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"] and all(p <= 0 for p in logprobs["token_logprobs"])
    assert all(len(top) == 5 for top in logprobs["top_logprobs"])
  for wrong in ({"prompt": "x", "suffix": "y"}, {"prompt": "x",
                                                 "logprobs": 6}, {"prompt": "x",
                                                                  "n": 129}, {"prompt": "x", "max_tokens": 0}):
    assert_error(*node.post(COMPLETIONS, wrong), 400)


def test_29_echo_scores_a_text(real: NodeProcess) -> None:
  text = "The capital of France is Paris."
  scored = complete(real, prompt=text, max_tokens=0, echo=True, logprobs=1)["choices"][0]
  logprobs = scored["logprobs"]
  assert scored["text"] == text and "".join(logprobs["tokens"]) == text and scored["finish_reason"] == "length"
  assert logprobs["token_logprobs"][0] is None and all(p <= 0 for p in logprobs["token_logprobs"][1:])
  # the model's own: the probability of each token is what generating after the tokens before it reports
  assert logprobs["tokens"][-2] == " Paris"
  after = complete(real, prompt=text.removesuffix(" Paris."), max_tokens=1, logprobs=5)["choices"][0]["logprobs"]
  assert after["top_logprobs"][0][" Paris"] == pytest.approx(logprobs["token_logprobs"][-2], abs=0.02)
  echoed = complete(real, prompt=text, max_tokens=4, echo=True)["choices"][0]["text"]
  assert echoed.startswith(text) and len(echoed) > len(text)


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], [[1], []], [-1], [999999], [[5, -3]], ["a", 1], None, {}, 5])
def test_30_bad_prompts(node: NodeProcess, prompt: Any) -> None:
  assert_error(*node.post(COMPLETIONS, {"prompt": prompt}), 400)


def test_31_models(node: NodeProcess) -> None:
  status, listed = node.get("/v1/models")
  assert status == 200 and listed["object"] == "list"
  assert all({"id", "object", "created", "owned_by"} <= set(m) and m["object"] == "model" for m in listed["data"])
  assert node.get("/v1/models/smollm2-135m")[1]["id"] == "smollm2-135m"
  assert assert_error(*node.get("/v1/models/nosuch"), 404)["code"] == "model_not_found"


def test_32_responses(node: NodeProcess, client: OpenAI) -> None:
  answer = client.responses.create(model="dummy", input="hello", max_output_tokens=12)
  assert answer.status == "incomplete" and answer.output_text and answer.usage and answer.usage.output_tokens == 12
  chat = client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=12)
  assert answer.output_text == chat.choices[0].message.content
  events = list(client.responses.create(model="dummy", input="hello", max_output_tokens=12, stream=True))
  assert [e.type for e in events[:4]] == [
      "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"
  ]
  assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == answer.output_text
  assert [e.sequence_number for e in events] == list(range(len(events)))
  assert events[-1].type == "response.incomplete" and events[-1].response.output_text == answer.output_text
  tools: Any = [{"type": "function", **TOOL}]
  called = client.responses.create(model="dummy", input="hello", tools=tools, tool_choice="required")
  item = next(i for i in called.output if i.type == "function_call")
  assert called.status == "completed" and item.name == "now" and isinstance(json.loads(item.arguments), dict)
  again = client.responses.create(
      model="dummy",
      max_output_tokens=5,
      tools=tools,
      input=[{"role": "user", "content": "hello"},
             item.to_dict(), {"type": "function_call_output", "call_id": item.call_id, "output": "12:00"}]
  )
  assert again.output_text
  with client.responses.stream(model="dummy", input="hello", tools=tools, tool_choice="required") as stream:
    final = stream.get_final_response()
  assert [i.type for i in final.output] == [i.type for i in called.output]
  for wrong in ({"input": []}, {}, {"input": "x", "tools": [{"type": "custom"}]}, {"input": [{"type": "magic"}]},
                {"input": "x", "previous_response_id": "resp_1"}, {"input": "x", "max_output_tokens": 0}):
    assert_error(*node.post("/v1/responses", wrong), 400)


def test_32_messages(node: NodeProcess) -> None:
  path = "/v1/messages"
  status, answer = node.post(path, {"messages": HELLO, "max_tokens": 9, "system": "be brief"})
  assert status == 200 and answer["type"] == "message" and answer["role"] == "assistant"
  assert answer["stop_reason"] == "max_tokens" and len(answer["content"][0]["text"]) == 9
  stopped = node.post(path, {"messages": HELLO, "max_tokens": 50, "stop_sequences": [answer["content"][0]["text"][3]]})
  assert stopped[1]["stop_reason"] in ("stop_sequence", "end_turn", "max_tokens")
  lines = raw_stream(node, path, {"messages": HELLO, "max_tokens": 9, "system": "be brief"})
  events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
  names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
  assert names == [e["type"] for e in events]
  assert (names[0], names[1], names[-3], names[-2],
          names[-1]) == ("message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop")
  text = "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta")
  assert text == answer["content"][0]["text"] and events[-2]["delta"]["stop_reason"] == "max_tokens"
  tools = [{"name": "now", "description": "the time", "input_schema": TOOL["parameters"]}]
  used = node.post(path, {"messages": HELLO, "max_tokens": 200, "tools": tools, "tool_choice": {"type": "any"}})[1]
  block = used["content"][-1]
  assert used["stop_reason"] == "tool_use" and block["type"] == "tool_use" and isinstance(block["input"], dict)
  result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block["id"], "content": "12:00"}]}
  turns = [*HELLO, {"role": "assistant", "content": used["content"]}, result]
  assert node.post(path, {"messages": turns, "max_tokens": 5, "tools": tools})[0] == 200
  counted = node.post(f"{path}/count_tokens", {"messages": HELLO, "system": "be brief"})[1]["input_tokens"]
  assert counted == answer["usage"]["input_tokens"] + answer["usage"]["cache_read_input_tokens"]
  for wrong in ({"messages": HELLO}, {"messages": [], "max_tokens": 5}, {"messages": HELLO, "max_tokens": 0},
                {"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 5}):
    assert_error(*node.post(path, wrong), 400)


def test_33_embeddings(node: NodeProcess, client: OpenAI) -> None:
  answer = client.embeddings.create(model="dummy", input=["one text", "another", "one text"])  # asks for base64
  vectors = [d.embedding for d in answer.data]
  assert vectors[0] == vectors[2] != vectors[1] and answer.usage.prompt_tokens == 8 + 7 + 8
  assert all(sum(x * x for x in v) == pytest.approx(1, abs=1e-5) for v in vectors)
  floats = node.post("/v1/embeddings", {"input": "one text", "encoding_format": "float"})[1]["data"][0]["embedding"]
  packed = node.post("/v1/embeddings", {"input": "one text", "encoding_format": "base64"})[1]["data"][0]["embedding"]
  decoded = struct.unpack(f"<{len(floats)}f", base64.b64decode(packed))
  assert list(decoded) == pytest.approx(floats) and vectors[0] == pytest.approx(floats)
  assert node.post("/v1/embeddings", {"input": list(b"one text")})[1]["data"][0]["embedding"] == floats
  for wrong in ({}, {"input": ""}, {"input": []}, {"input": [1.5]}, {"input": "x", "encoding_format": "hex"},
                {"input": "x", "dimensions": 10**6}, {"input": "x" * 9000}):
    assert_error(*node.post("/v1/embeddings", wrong), 400)


_VECTORS: dict[str, list[float]] = {}


def test_33_embeddings_of_a_real_model(real: NodeProcess) -> None:
  texts = ["A cat sat on the mat.", "A kitten was sitting on a rug.", "Interest rates rose by two percent. " * 40]
  data = real.post("/v1/embeddings", {"input": texts})[1]["data"]
  cat, kitten, rates = (d["embedding"] for d in data)

  def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))

  assert all(dot(v, v) == pytest.approx(1, abs=1e-4) for v in (cat, kitten, rates))
  assert dot(cat, kitten) > dot(cat, rates)
  assert _VECTORS.setdefault("cat", cat) == pytest.approx(cat, abs=1e-5)  # the same on one node and on two
  with ThreadPoolExecutor(2) as pool:  # beside a generation
    both = [
        pool.submit(real.chat, "hello", max_tokens=20),
        pool.submit(real.post, "/v1/embeddings", {"input": texts[0]})
    ]
    assert both[0].result()[0] == 200
    assert both[1].result()[1]["data"][0]["embedding"] == pytest.approx(cat, abs=1e-3)


def test_34_health_topology_and_tokens(node: NodeProcess) -> None:
  for path in ("/health", "/healthcheck"):
    assert node.get(path) == (200, {"status": "ok"})
  assert call(node, "GET", "/metrics")[0] == 200
  assert node.node_id in node.get("/v1/topology")[1]["nodes"]
  encoded = node.post("/v1/chat/token/encode", {"messages": HELLO})[1]
  assert encoded["num_tokens"] == len(encoded["encoded_tokens"]) == encoded["length"] == len(encoded["encoded_prompt"])
  assert node.get("/v1/download/progress")[0] == 200


def test_34_quitting(tmp_path: Path) -> None:
  """From the same machine, without a key."""
  with ring(tmp_path, 1, "--inference-engine", "dummy", "--default-model", "dummy") as (leaving, ):
    assert leaving.get("/quit")[0] == 405
    assert leaving.post("/quit", {})[0] == 200
    assert leaving.process.wait(20) == 0


def test_34_and_35_a_draining_node(tmp_path: Path) -> None:
  """Told to stop, it finishes what runs, says 503 to what is new, and ends."""
  with ring(tmp_path, 1, "--inference-engine", "dummy", "--default-model", "dummy") as (leaving, ):
    body = {"messages": HELLO, "stream": True, "max_tokens": 8000, "logit_bias": {"256": -100}}
    connection = connect(leaving)
    connection.request("POST", CHAT, json.dumps(body), JSON)
    response = connection.getresponse()
    response.readline()
    leaving.process.send_signal(signal.SIGTERM)
    wait_until(lambda: leaving.get("/healthcheck")[0] == 503, 5, "the word that it drains")
    assert leaving.get("/health")[1]["reason"]
    assert_error(*leaving.post(CHAT, {"messages": HELLO}), 503)
    assert response.read().endswith(b"data: [DONE]\n\n")
    response.close()
    connection.close()
    assert leaving.process.wait(20) == 0


def test_ollama(node: NodeProcess) -> None:
  assert node.get("/api/version")[1]["version"] and "models" in node.get("/api/tags")[1]
  shown = node.post("/api/show", {"model": "dummy"})[1]
  assert "completion" in shown["capabilities"] and shown["model_info"]["dummy.context_length"] == 8192
  options = {"num_predict": 9, "temperature": 0}
  whole = node.post("/api/chat", {"model": "dummy:latest", "messages": HELLO, "options": options, "stream": False})[1]
  assert whole["done"] and whole["done_reason"] == "length" and whole["eval_count"] == 9
  assert len(whole["message"]["content"]) == 9 and whole["message"]["role"] == "assistant"
  status, headers, lines = call(
      node, "POST", "/api/chat",
      json.dumps({"messages": HELLO, "options": options}).encode(), JSON
  )
  pieces = [json.loads(line) for line in lines.splitlines()]
  assert status == 200 and headers["content-type"].startswith("application/x-ndjson")
  assert "".join(p["message"]["content"] for p in pieces) == whole["message"]["content"]
  assert [p["done"] for p in pieces] == [False] * (len(pieces) - 1) + [True]
  generated = node.post("/api/generate", {"prompt": "hello", "options": options, "stream": False})[1]
  assert generated["response"] == whole["message"]["content"]
  raw = node.post("/api/generate", {"prompt": "hello", "raw": True, "options": options, "stream": False})[1]
  assert raw["response"] == complete(node, prompt="hello", max_tokens=9)["choices"][0]["text"]
  asked = {"messages": HELLO, "stream": False, "options": {"num_predict": 60}, "format": "json"}
  assert isinstance(json.loads(node.post("/api/chat", asked)[1]["message"]["content"]), dict)
  for wrong in ({"model": "nosuch"}, {"messages": [{"role": "user", "content": "x", "images": ["a"]}]},
                {"messages": HELLO, "options": {"temperature": 9}}, {"messages": HELLO, "format": "xml"}):
    status, answer = node.post("/api/chat", wrong)
    assert status in (400, 404) and isinstance(answer["error"], str)


def test_35_the_one_shape_of_errors(node: NodeProcess) -> None:
  cases: list[tuple[str, str, bytes | None, dict[str, str],
                    int]] = [("GET", "/v1/nothing", None, {}, 404), ("GET", CHAT, None, {}, 405),
                             ("DELETE", CHAT, b"{}", JSON, 405), ("POST", "/v1/models", b"{}", JSON, 405),
                             ("POST", CHAT, b"{", JSON, 400),
                             ("POST", CHAT, b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}, 400),
                             ("POST", CHAT, b"{}", {"Content-Type": "text/plain"}, 415), ("POST", CHAT, b"{}", {}, 400),
                             ("POST", CHAT, b'{"x": "' + b"x" * (17 * 2**20) + b'"}', JSON, 413),
                             ("GET", "/v1/models", None, {"Host": "evil.example"}, 403),
                             ("POST", CHAT, b"{}", JSON | {"Origin": "http://evil.example"}, 403),
                             ("POST", "/v1/cancel/chatcmpl-1", b"{}", JSON, 404)]
  for method, path, body, headers, expected in cases:
    try:
      status, _, answer = call(node, method, path, body, headers)
    except (ConnectionError, BrokenPipeError):
      assert expected == 413  # the node need not read it to the end
      continue
    assert_error(status, answer, expected)


@pytest.mark.parametrize(
    "body", [
        b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe", b'{"messages": "\\ud800"}', b"[" * 2000, b"{}",
        b'{"messages": [{"role": "user", "content": 1e999}]}', {"messages": None}, {"messages": "hi"}, {"messages": []},
        {"messages": [123]}, {"messages": [{}]}, {"messages": [None]}, {"messages": [{"role": 5, "content": "x"}]}, {
            "messages": [{"role": "user", "content": 5}]
        }, {"messages": [{"role": None, "content": "x"}]}, {"messages": [{"role": "nobody", "content": "x"}]},
        {"messages": [{"role": "user"}]}, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, {
            "messages": [{"role": "user", "content": [5]}]
        }, {"messages": HELLO, "stream": "yes"}, {"messages": HELLO, "model": 5}
    ]
)
def test_36_bad_bodies(node: NodeProcess, body: Any) -> None:
  error = assert_error(*node.post(CHAT, body), 400)
  assert error["type"] == "invalid_request_error"


def test_37_an_api_key(tmp_path: Path) -> None:
  with ring(
      tmp_path,
      1,
      "--inference-engine",
      "dummy",
      "--default-model",
      "dummy",
      "--api-key",
      "s3cret-key-of-28-characters",
      wait=False
  ) as nodes:
    node = nodes[0]
    assert call(node, "GET", "/health")[0] == 200 and call(node, "GET", "/healthcheck")[0] == 200
    assert call(node, "GET", "/")[0] == 200
    for method, path in (("GET", "/v1/models"), ("POST", CHAT), ("POST", "/v1/messages"), ("POST", "/v1/responses"),
                         ("POST", "/v1/embeddings"), ("GET", "/api/tags"), ("POST", "/api/chat"), ("GET", "/metrics"),
                         ("POST", "/v1/cancel/x"), ("GET", "/openapi.json"), ("GET", "/v1/nothing")):
      status, _, answer = call(node, method, path, b"{}" if method == "POST" else None, JSON)
      if path.startswith("/api/"):
        assert status == 401 and isinstance(answer["error"], str)
      else:
        assert_error(status, answer, 401)
    body = json.dumps({"messages": HELLO, "max_tokens": 2}).encode()
    for headers in ({"Authorization": "Bearer s3cret-key-of-28-characters"},
                    {"x-api-key": "s3cret-key-of-28-characters"}):
      assert call(node, "POST", CHAT, body, JSON | headers)[0] == 200
    assert call(node, "POST", CHAT, body, JSON | {"Authorization": "Bearer wrong"})[0] == 401


def test_38_errors_tell_nothing_of_the_inside(node: NodeProcess) -> None:
  secret = "my-very-private-prompt"
  assert node.chat(secret, max_tokens=3)[0] == 200
  bodies: list[Any] = [{"messages": 5}, {"messages": HELLO, "model": "nosuch"}, {"messages": HELLO, "stop": 5}, {
      "messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "banana"}}}
  }, {"messages": [{"role": "user", "content": "x" * 9000}]}]
  for body in bodies:
    status, answer = node.post(CHAT, body)
    text = json.dumps(answer)
    assert 400 <= status < 500 and secret not in text
    assert not any(word in text for word in ("Traceback", "File \"", str(node.home), "/site-packages/", ".py"))


def test_35_and_13_three_hundred_clients_at_once(node: NodeProcess) -> None:
  """Each gets an answer or a 429 with Retry-After; the node stays well."""
  def one(number: int) -> int:
    connection = connect(node)
    connection.request("POST", CHAT, json.dumps({"messages": HELLO, "max_tokens": 20, "seed": number}), JSON)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    if response.status == 429:
      assert int(response.headers["Retry-After"]) > 0 and answer["error"]["code"] == "queue_full"
    else:
      assert response.status == 200 and answer["usage"]["completion_tokens"] <= 20
    return response.status

  with ThreadPoolExecutor(300) as pool:
    statuses = list(pool.map(one, range(300)))
  assert statuses.count(200) + statuses.count(429) == 300 and statuses.count(200) >= 64
  assert node.chat("hello", max_tokens=3)[0] == 200
