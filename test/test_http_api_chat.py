"""Numbers 1 to 23 of what an OpenAI client expects, over HTTP on one node and on a ring of two."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from test.support.http import assert_error, call, connect, raw_stream, stream_data, stream_json
from test.support.nodes import NodeProcess, ring, wait_until

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
NEVER_STOP = {"256": -100}  # the dummy model's end token


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "ring of two"])
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
  home = tmp_path_factory.mktemp("chat")
  with ring(home, request.param, "--inference-engine", "dummy", "--default-model", "dummy") as started:
    yield started


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "ring of two"])
def real(request: pytest.FixtureRequest, model_home: Path) -> Iterator[NodeProcess]:
  """A node with SmolLM2."""
  with ring(model_home, request.param, "--inference-engine", "onnx") as started:
    yield started[0]


@pytest.fixture
def node(nodes: list[NodeProcess]) -> NodeProcess:
  return nodes[-1]  # of two, the one that does not begin the plan


def client_of(node: NodeProcess) -> OpenAI:
  return OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture
def client(node: NodeProcess) -> OpenAI:
  return client_of(node)


def text(client: OpenAI, messages: Any = HELLO, **fields: Any) -> str:
  fields = {"model": "dummy", "max_tokens": 30} | fields
  return client.chat.completions.create(messages=messages, **fields).choices[0].message.content or ""


def test_01_and_02_the_object_and_its_choices(node: NodeProcess) -> None:
  status, answer = node.post(CHAT, {"messages": HELLO, "max_tokens": 5, "n": 2})
  assert status == 200 and answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
  assert abs(answer["created"] - time.time()) < 60 and answer["model"] == "dummy" and answer["system_fingerprint"]
  for index, choice in enumerate(answer["choices"]):
    assert set(choice) == {"index", "message", "finish_reason", "logprobs"}
    assert choice["index"] == index and choice["logprobs"] is None and choice["finish_reason"] == "length"
    assert choice["message"]["role"] == "assistant" and len(choice["message"]["content"]) == 5


def test_03_usage(node: NodeProcess) -> None:
  usage = node.post(CHAT, {"messages": HELLO, "max_tokens": 20})[1]["usage"]
  assert usage["prompt_tokens"] == len("user: hello\n") and usage["completion_tokens"] == 20
  assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
  long = [{"role": "user", "content": f"a prompt of its own on {node.url} " * 10}]
  cold, warm = (node.post(CHAT, {"messages": long, "max_tokens": 5})[1] for _ in range(2))
  assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
  assert 0 < warm["usage"]["prompt_tokens_details"]["cached_tokens"] < warm["usage"]["prompt_tokens"]
  assert cold["choices"][0]["message"] == warm["choices"][0]["message"]


def test_04_the_two_names_of_max_tokens_and_none(node: NodeProcess) -> None:
  for name in ("max_tokens", "max_completion_tokens"):
    answer = node.post(CHAT, {"messages": HELLO, name: 3})[1]
    assert answer["usage"]["completion_tokens"] == 3 and answer["choices"][0]["finish_reason"] == "length"
  free = node.post(CHAT, {"messages": [{"role": "user", "content": "x" * 8000}], "logit_bias": NEVER_STOP})[1]
  assert free["usage"]["total_tokens"] == 8192 and free["choices"][0]["finish_reason"] == "length"
  unlimited = {"messages": [{"role": "user", "content": "x" * 8000}], "logit_bias": NEVER_STOP, "max_tokens": -1}
  assert node.post(CHAT, unlimited)[1]["choices"] == free["choices"]
  assert node.post(CHAT, {"messages": HELLO, "max_tokens": 3.0})[1]["usage"]["completion_tokens"] == 3
  for wrong in (0, -2, 1.5, "many"):
    assert_error(*node.post(CHAT, {"messages": HELLO, "max_tokens": wrong}), 400)


def test_05_contents_and_roles(client: OpenAI) -> None:
  parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
  assert text(client, [{"role": "user", "content": parts}]) == text(client)
  assert text(client, [{"role": "developer", "content": "be brief"}, *HELLO
                       ]) == text(client, [{"role": "system", "content": "be brief"}, *HELLO]) != text(client)
  call_made = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
  assert text(
      client, [
          *HELLO, {"role": "assistant", "content": "hi", "tool_calls": [call_made]},
          {"role": "tool", "content": "12:00", "tool_call_id": "call_1"}
      ]
  )


def test_06_several_turns_and_null_content(client: OpenAI) -> None:
  turns = [*HELLO, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "and now?"}]
  assert text(client, turns) != text(client, turns[-1:])
  made = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{\"zone\": \"utc\"}"}}
  result = {"role": "tool", "content": "12:00", "tool_call_id": "call_1"}
  assert text(client, [*HELLO, {"role": "assistant", "content": None, "tool_calls": [made]}, result])


def test_07_n(client: OpenAI, node: NodeProcess) -> None:
  answer = client.chat.completions.create(model="dummy", messages=HELLO, n=8, temperature=1.5, max_tokens=20)
  assert [c.index for c in answer.choices] == list(range(8))
  assert len({c.message.content for c in answer.choices}) == 8
  assert answer.usage and answer.usage.completion_tokens <= 160
  many = client.chat.completions.create(model="dummy", messages=HELLO, n=128, temperature=1.5, max_tokens=4)
  assert [c.index for c in many.choices] == list(range(128)) and len({c.message.content for c in many.choices}) > 100
  for n in (0, 129, -1, "two"):
    assert assert_error(*node.post(CHAT, {"messages": HELLO, "n": n}), 400)["param"] == "n"


def test_08_sampling_parameters(client: OpenAI, node: NodeProcess) -> None:
  greedy = text(client, temperature=0)
  assert greedy == text(client, temperature=0, seed=5) == text(client)
  for narrow in ({"top_p": 0.0}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}):
    assert text(client, temperature=2, **narrow) == greedy
  assert text(client, temperature=2) != greedy
  for repeated in (
      text(client, max_tokens=200, frequency_penalty=2, logit_bias={"97": 9, "98": 8}),
      text(client, max_tokens=200, extra_body={"repetition_penalty": 2.0}, logit_bias={"97": 9, "98": 8})
  ):
    assert len(set(repeated)) > len(set(text(client, max_tokens=200, logit_bias={"97": 100, "98": 99})))
  assert len(set(text(client, max_tokens=90, presence_penalty=2))) > len(set(text(client, max_tokens=90)))
  for field, values in {
      "temperature": (-0.1, 2.1, "hot"), "top_p": (-0.1, 1.1), "min_p": (-1, 2), "top_k": (-2, 1.5),
      "frequency_penalty": (-2.1, 2.1), "presence_penalty": (-2.1, 2.1), "repetition_penalty": (0, 11)
  }.items():
    for value in values:
      assert assert_error(*node.post(CHAT, {"messages": HELLO, field: value}), 400)["param"] == field


def test_09_seeds(client: OpenAI, node: NodeProcess) -> None:
  def drawn(seed: int) -> str:
    return text(client, temperature=1.0, seed=seed, max_tokens=60, logit_bias=NEVER_STOP)

  alone = [drawn(seed) for seed in range(4)]
  assert len(set(alone)) == 4 and drawn(-2**63) and drawn(2**63 - 1)
  with ThreadPoolExecutor(12) as pool:
    among_others = list(pool.map(drawn, [0, 1, 2, 3] * 3))
  assert among_others == alone * 3
  for wrong in (2**63, -2**63 - 1, 1.5, "x"):
    assert_error(*node.post(CHAT, {"messages": HELLO, "seed": wrong}), 400)


_DRAWN: dict[int, str] = {}


def test_09_seeds_of_a_real_model_on_any_ring(real: NodeProcess) -> None:
  client = client_of(real)

  def drawn(seed: int) -> str:
    return text(
        client, [{"role": "user", "content": "Tell me a story."}], model="smollm2-135m", temperature=1.0, seed=seed
    )

  alone = {seed: drawn(seed) for seed in (1, 2)}
  with ThreadPoolExecutor(4) as pool:
    assert list(pool.map(drawn, [1, 2, 1, 2])) == [alone[1], alone[2]] * 2
  assert alone[1] != alone[2]
  assert _DRAWN.setdefault(1, alone[1]) == alone[1]  # the same on one node and on two


def test_10_stop_strings(client: OpenAI, node: NodeProcess) -> None:
  full = text(client, max_tokens=60)
  for stop in (full[10:14], [full[30:32], full[20:25]], full[5], [full[40:50], "never", "neither", full[45:47]]):
    found = [(full.index(s) + len(s), full.index(s)) for s in ([stop] if isinstance(stop, str) else stop) if s in full]
    first = min(found)[1]  # the one that is complete first
    whole = client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=60, stop=stop).choices[0]
    assert (whole.message.content, whole.finish_reason) == (full[:first], "stop")
    chunks = list(client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=60, stop=stop, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == full[:first]
    assert chunks[-1].choices[0].finish_reason == "stop"
  sixty_four = [f"never {i}" for i in range(63)] + [full[20:24]]
  cut = client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=60, stop=sixty_four).choices[0]
  assert cut.message.content == full[:full.index(full[20:24])]
  for empty in ("", [""], ["", ""]):
    assert text(client, max_tokens=60, stop=empty) == full
  for wrong in (["a"] * 65, [1], 7):
    assert assert_error(*node.post(CHAT, {"messages": HELLO, "stop": wrong}), 400)["param"] == "stop"


def test_10_a_stop_string_within_a_token(real: NodeProcess) -> None:
  client = client_of(real)
  question = [{"role": "user", "content": "What is the capital of France?"}]
  full = text(client, question, model="smollm2-135m", max_tokens=40)
  stop = full[12:17]
  cut = client.chat.completions.create(
      model="smollm2-135m", messages=question, max_tokens=40, stop=stop, logprobs=True, top_logprobs=1
  ).choices[0]
  assert cut.message.content == full[:full.index(stop)] and cut.finish_reason == "stop"
  assert cut.logprobs and b"".join(bytes(t.bytes or [])
                                   for t in cut.logprobs.content or []).decode() == cut.message.content


def test_11_logit_bias(client: OpenAI, node: NodeProcess) -> None:
  assert text(client, max_tokens=8, logit_bias={str(ord("a")): 100}) == "aaaaaaaa"
  for by_text in ({"a": 100}, [["a", 100]], [[ord("a"), 100]]):
    assert text(client, max_tokens=8, extra_body={"logit_bias": by_text}) == "aaaaaaaa"
  full = text(client, max_tokens=8)
  assert set(full) & set(text(client, max_tokens=100, extra_body={"logit_bias": [[full, False]]})) == set()
  assert full[0] not in text(client, max_tokens=100, logit_bias={str(ord(full[0])): -100})
  for bias, named in (({"xyz": 1}, "'xyz'"), ([["", 1]], "''"), ([["x", 101]], "101"), ({"999999": 1}, "999999"),
                      ({"5": 101}, "101"), ({"-1": 1}, "'-1'"), ({"5": "high"}, "logit_bias")):
    error = assert_error(*node.post(CHAT, {"messages": HELLO, "logit_bias": bias}), 400)
    assert named in error["message"] and error["param"] == "logit_bias"


def test_12_unknown_fields_and_models(client: OpenAI, node: NodeProcess) -> None:
  assert text(client, extra_body={"banana": {"deep": [1]}, "metadata": {"a": "b"}}) == text(client)
  with pytest.raises(openai.NotFoundError, match="Did you mean smollm2-135m") as caught:
    client.chat.completions.create(model="smolm2-135", messages=HELLO)
  assert caught.value.code == "model_not_found"
  for path in ("/etc/passwd", "../../etc/passwd", "org/repo\\..", "\0", "x" * 5000):
    assert_error(*node.post(CHAT, {"model": path, "messages": HELLO}), 404)
  for name in ("gpt-4o", "gpt-3.5-turbo"):
    assert client.chat.completions.create(model=name, messages=HELLO, max_tokens=1).model == "dummy"


def test_13_a_prompt_longer_than_the_context(node: NodeProcess) -> None:
  for stream in (False, True):
    error = assert_error(*node.chat("x" * 9000, stream=stream), 400)
    assert error["code"] == "context_length_exceeded"
    assert str(9000 + len("user: \n")) in error["message"] and "8192" in error["message"]


def test_14_the_form_of_a_stream(node: NodeProcess) -> None:
  lines = raw_stream(node, CHAT, {"messages": HELLO, "max_tokens": 9})
  events = [line for line in lines if line]
  assert all(line.startswith(("data: ", ":")) for line in events) and events[-1] == "data: [DONE]"
  chunks = [json.loads(line.removeprefix("data: ")) for line in events[:-1] if line.startswith("data: ")]
  assert {c["object"] for c in chunks} == {"chat.completion.chunk"} and len({c["id"] for c in chunks}) == 1
  assert len({(c["created"], c["model"], c["system_fingerprint"]) for c in chunks}) == 1


def test_15_and_16_deltas(node: NodeProcess) -> None:
  chunks = stream_json(node, CHAT, {"messages": HELLO, "max_tokens": 9, "n": 2})
  for index in (0, 1):
    choices = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
    assert choices[0]["delta"]["role"] == "assistant" and not any("role" in c["delta"] for c in choices[1:])
    assert all(None not in c["delta"].values() for c in choices)
    assert all(c["delta"]["content"] for c in choices[1:-1])
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["length"]
    assert choices[-1]["delta"] == {}


def test_17_the_deltas_joined(client: OpenAI, node: NodeProcess) -> None:
  for fields in ({}, {"temperature": 1.0, "seed": 3}):
    chunks = stream_json(node, CHAT, {"messages": HELLO, "max_tokens": 80, **fields})
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == text(client, max_tokens=80, **fields)


def test_17_characters_of_several_tokens(node: NodeProcess) -> None:
  """The dummy's tokens are bytes: a grammar forces them into characters of up to four."""
  schema = {"const": "水は🙂é"}
  fields = {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}
  deltas = [c["choices"][0]["delta"].get("content", "") for c in stream_json(node, CHAT, {"messages": HELLO, **fields})]
  assert "".join(deltas) == '"水は🙂é"' and [d for d in deltas if d] == list('"水は🙂é"')


def test_18_usage_in_a_stream(node: NodeProcess) -> None:
  plain = stream_json(node, CHAT, {"messages": HELLO, "max_tokens": 7})
  assert all(not c.get("usage") for c in plain) and all(c["choices"] for c in plain)
  for options in ({}, {"include_usage": False}):
    chunks = stream_json(node, CHAT, {"messages": HELLO, "max_tokens": 7, "stream_options": options})
    assert all(not c.get("usage") for c in chunks)
  chunks = stream_json(node, CHAT, {"messages": HELLO, "max_tokens": 7, "stream_options": {"include_usage": True}})
  assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 7
  assert all(not c["usage"] for c in chunks[:-1])
  error = assert_error(*node.post(CHAT, {"messages": HELLO, "stream_options": {"include_usage": True}}), 400)
  assert error["param"] == "stream_options"


def test_19_several_choices_in_a_stream(client: OpenAI, node: NodeProcess) -> None:
  fields: dict[str, Any] = {"n": 3, "temperature": 1.5, "seed": 3, "max_tokens": 40, "logit_bias": NEVER_STOP}
  texts, order = ["", "", ""], []
  for chunk in stream_json(node, CHAT, {"messages": HELLO, **fields}):
    choice = chunk["choices"][0]
    texts[choice["index"]] += choice["delta"].get("content", "")
    order.append(choice["index"])
  whole = client.chat.completions.create(model="dummy", messages=HELLO, **fields)
  assert [c.message.content for c in whole.choices] == texts
  assert order != sorted(order)  # they take turns


def test_20_the_response_begins_at_once_and_is_kept_alive(real: NodeProcess) -> None:
  client_of(real).chat.completions.create(model="smollm2-135m", messages=HELLO, max_tokens=1)  # loaded from here on
  connection = connect(real)
  prompt = "The quick brown fox jumps over the lazy dog. " * 200
  body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 1, "stream": True}
  started = time.monotonic()
  connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
  response = connection.getresponse()
  first = response.readline().decode()
  begun = time.monotonic() - started
  lines = response.read().decode().split("\n")
  took = time.monotonic() - started
  connection.close()
  assert response.status == 200 and '"role":"assistant"' in first and begun < took
  comments = [line for line in lines if line.startswith(":")]
  assert lines[-3:] == ["data: [DONE]", "", ""] and (": keep-alive" in comments or took < 3)
  assert took < 3 or comments, "a prefill of several seconds without a sign of life"


def test_21_a_failure_after_the_start(nodes: list[NodeProcess], node: NodeProcess) -> None:
  connection = connect(node)
  body = {"messages": HELLO, "stream": True, "max_tokens": 8000, "logit_bias": NEVER_STOP}
  connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
  response = connection.getresponse()
  request_id = json.loads(response.readline().decode().removeprefix("data: "))["id"]
  status, _, answer = call(node, "POST", f"/v1/cancel/{request_id}", b"{}", JSON)
  assert (status, answer["cancelled"]) == (200, True)
  data = [line for line in response.read().decode().split("\n") if line.startswith("data: ")]
  connection.close()
  error = json.loads(data[-2].removeprefix("data: "))["error"]
  assert set(error) == {"message", "type", "param", "code"} and error["code"] == "cancelled"
  assert data[-1] == "data: [DONE]"
  wait_until(
      lambda: any("is cancelled" in line and request_id in line for n in nodes for line in n.log.splitlines()), 5,
      "the ring to be told"
  )
  assert_error(*call(node, "POST", f"/v1/cancel/{request_id}", b"{}", JSON)[::2], 404)


def test_22_a_client_that_leaves_frees_every_stage(nodes: list[NodeProcess], node: NodeProcess) -> None:
  for stream in (True, False):
    before = sum(n.log.count("is cancelled") for n in nodes)
    connection = connect(node)
    body = {"messages": HELLO, "stream": stream, "max_tokens": 8000, "logit_bias": NEVER_STOP}
    connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
    if stream:
      connection.getresponse().readline()
    else:
      time.sleep(0.2)
    if connection.sock is not None:
      connection.sock.close()
    connection.close()
    wait_until(
        lambda before=before: sum(n.log.count("is cancelled") for n in nodes) > before, 2, "the freeing of the request"
    )
  assert node.chat("hello", max_tokens=5)[0] == 200


def test_22_two_hundred_aborts_and_then_one_request(node: NodeProcess) -> None:
  def abort(number: int) -> None:
    connection = connect(node)
    body = {"messages": HELLO, "stream": number % 2 == 0, "max_tokens": 5000, "logit_bias": NEVER_STOP}
    connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
    time.sleep(0.002 * (number % 10))
    connection.close()

  threads = [threading.Thread(target=abort, args=(i, )) for i in range(200)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  assert node.chat("hello", max_tokens=5)[1]["usage"]["completion_tokens"] == 5


def test_23_log_probabilities(node: NodeProcess) -> None:
  for top in (0, 3, 20):
    fields = {"messages": HELLO, "max_tokens": 12, "logprobs": True, "top_logprobs": top}
    answer = node.post(CHAT, fields)[1]["choices"][0]
    entries = answer["logprobs"]["content"]
    assert len(entries) == 12 and b"".join(bytes(e["bytes"]) for e in entries).decode() == answer["message"]["content"]
    for entry in entries:
      assert entry["logprob"] <= 0 and len(entry["top_logprobs"]) == top
      assert all(alternative["logprob"] <= 0 for alternative in entry["top_logprobs"])
      assert not top or entry["top_logprobs"][0]["token"] == entry["token"]
    chunks = stream_json(node, CHAT, fields)
    streamed = [e for c in chunks if c["choices"][0]["logprobs"] for e in c["choices"][0]["logprobs"]["content"]]
    assert streamed == entries
  assert node.post(CHAT, {"messages": HELLO, "max_tokens": 1})[1]["choices"][0]["logprobs"] is None
  for wrong in ({"logprobs": True, "top_logprobs": 21}, {"logprobs": True, "top_logprobs": -1}, {"top_logprobs": 2}):
    assert_error(*node.post(CHAT, {"messages": HELLO, **wrong}), 400)


def test_23_log_probabilities_of_a_real_model(real: NodeProcess) -> None:
  question = "Write three emoji and the Chinese word for water."
  fields = {"max_tokens": 40, "logprobs": True, "top_logprobs": 2, "temperature": 1.3, "seed": 5}
  answer = real.chat(question, **fields)[1]["choices"][0]
  entries = answer["logprobs"]["content"]
  assert b"".join(bytes(e["bytes"]) for e in entries).decode(errors="replace") == answer["message"]["content"]
  assert all(e["logprob"] <= 0 and len(e["top_logprobs"]) == 2 for e in entries)
  chunks = stream_data(real, CHAT, {"messages": [{"role": "user", "content": question}], **fields})[:-1]
  streamed = [json.loads(c)["choices"][0] for c in chunks]
  assert [e for c in streamed if c["logprobs"] for e in c["logprobs"]["content"]] == entries
