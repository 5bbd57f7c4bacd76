"""The HTTP API of a running node through the real OpenAI client and through raw requests."""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from test.support.nodes import NodeProcess, ring, wait_until

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "ring of two"])
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
  with ring(
      tmp_path_factory.mktemp("api"), request.param, "--inference-engine", "dummy", "--default-model", "dummy"
  ) as started:
    yield started


@pytest.fixture
def node(nodes: list[NodeProcess]) -> NodeProcess:
  return nodes[0]


@pytest.fixture
def client(node: NodeProcess) -> OpenAI:
  return OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0, timeout=60)


def stream_of(node: NodeProcess, path: str, body: dict[str, Any]) -> list[str]:
  """The raw `data:` lines of a streamed answer."""
  address = urllib.parse.urlsplit(node.url)
  connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
  connection.request("POST", path, json.dumps(body | {"stream": True}), {"Content-Type": "application/json"})
  response = connection.getresponse()
  assert response.status == 200
  assert response.headers["Content-Type"].startswith("text/event-stream")
  lines = response.read().decode().split("\n")
  connection.close()
  return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def test_chat(client: OpenAI) -> None:
  answer = client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=20)
  assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == "dummy"
  assert answer.choices[0].finish_reason == "length" and answer.choices[0].logprobs is None
  assert len(answer.choices[0].message.content or "") == 20
  usage = answer.usage
  assert usage and usage.completion_tokens == 20 and usage.total_tokens == usage.prompt_tokens + 20
  assert usage.prompt_tokens == len("user: hello\n")


def test_streamed_equals_whole(client: OpenAI, node: NodeProcess) -> None:
  whole = client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=40)
  chunks = list(client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=40, stream=True))
  assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
  assert len({c.id for c in chunks}) == 1 and {c.object for c in chunks} == {"chat.completion.chunk"}
  assert [c.choices[0].delta.role for c in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
  assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
  assert all(c.usage is None for c in chunks)
  lines = stream_of(node, "/v1/chat/completions", {"messages": HELLO, "max_tokens": 5})
  assert lines[-1] == "[DONE]" and json.loads(lines[-2])["choices"][0]["delta"] == {}


def test_usage_in_a_stream_only_when_asked_for(client: OpenAI) -> None:
  chunks = list(
      client.chat.completions.create(
          model="dummy", messages=HELLO, max_tokens=7, stream=True, stream_options={"include_usage": True}
      )
  )
  assert chunks[-1].choices == [] and chunks[-1].usage and chunks[-1].usage.completion_tokens == 7
  with pytest.raises(openai.BadRequestError, match="only allowed with stream"):
    client.chat.completions.create(model="dummy", messages=HELLO, stream_options={"include_usage": True})


def test_max_tokens_and_end_of_text(client: OpenAI) -> None:
  for field in ("max_tokens", "max_completion_tokens"):
    answer = client.chat.completions.create(model="dummy", messages=HELLO, **{field: 3})
    assert answer.usage and answer.usage.completion_tokens == 3 and answer.choices[0].finish_reason == "length"
  stopped = client.chat.completions.create(model="dummy", messages=HELLO, temperature=1.0, seed=1, max_tokens=5000)
  assert stopped.choices[0].finish_reason == "stop" and "<eos>" not in (stopped.choices[0].message.content or "")


def test_seed_and_temperature(client: OpenAI) -> None:
  def text(**fields: Any) -> str:
    answer = client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=30, **fields)
    return answer.choices[0].message.content or ""

  assert text() == text() == text(temperature=0)
  assert text(temperature=1.0, seed=4) == text(temperature=1.0, seed=4)
  assert text(temperature=1.0, seed=4) != text(temperature=1.0, seed=5)
  assert text(temperature=2.0) != text(temperature=2.0)
  assert text(temperature=1.0, top_p=0.0) == text()


def test_stop_strings_end_the_text_before_them(client: OpenAI) -> None:
  full = client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=60).choices[0].message.content or ""
  for stop in (full[10:14], [full[30:32], full[20:25]], full[5]):
    first = min(full.index(s) for s in ([stop] if isinstance(stop, str) else stop))
    for streamed in (False, True):
      answer = client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=60, stop=stop, stream=streamed)
      if streamed:
        chunks = list(answer)
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        reason = chunks[-1].choices[0].finish_reason
      else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
      assert (text, reason) == (full[:first], "stop")
  with pytest.raises(openai.BadRequestError, match="up to 64"):
    client.chat.completions.create(model="dummy", messages=HELLO, stop=["a"] * 65)


def test_logit_bias(client: OpenAI) -> None:
  only_a = client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=8, logit_bias={str(ord("a")): 100})
  assert only_a.choices[0].message.content == "aaaaaaaa"
  full = client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=8).choices[0].message.content or ""
  banned = client.chat.completions.create(
      model="dummy", messages=HELLO, max_tokens=8, logit_bias={str(ord(full[0])): -100}
  ).choices[0].message.content or ""
  assert full[0] not in banned
  for bias, named in (({"xyz": 1}, "'xyz'"), ({"999999": 1}, "999999"), ({"5": 101}, "101"), ({"-1": 1}, "'-1'")):
    with pytest.raises(openai.BadRequestError, match=named):
      client.chat.completions.create(model="dummy", messages=HELLO, logit_bias=bias)


def test_several_choices(client: OpenAI) -> None:
  answer = client.chat.completions.create(model="dummy", messages=HELLO, n=4, temperature=1.5, max_tokens=10)
  assert [c.index for c in answer.choices] == [0, 1, 2, 3] and len({c.message.content for c in answer.choices}) == 4
  chunks = client.chat.completions.create(
      model="dummy", messages=HELLO, n=3, temperature=1.5, seed=3, max_tokens=10, stream=True
  )
  texts = ["", "", ""]
  for chunk in chunks:
    texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
  whole = client.chat.completions.create(model="dummy", messages=HELLO, n=3, temperature=1.5, seed=3, max_tokens=10)
  assert [c.message.content for c in whole.choices] == texts


def test_chat_log_probabilities(client: OpenAI) -> None:
  answer = client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=5, logprobs=True, top_logprobs=3)
  content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
  assert content and len(content) == 5
  assert "".join(t.token for t in content) == answer.choices[0].message.content
  for token in content:
    assert token.logprob <= 0 and len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token


def test_completions_with_token_ids_echo_and_log_probabilities(client: OpenAI) -> None:
  ids = list(b"score this text")
  for prompt in (ids, "score this text"):
    scored = client.completions.create(model="dummy", prompt=prompt, max_tokens=0, echo=True, logprobs=1)
    choice = scored.choices[0]
    assert choice.text == "score this text" and choice.finish_reason == "length"
    logprobs = choice.logprobs
    assert logprobs and logprobs.tokens == [chr(i) for i in ids]
    assert logprobs.token_logprobs and logprobs.token_logprobs[0] is None
    assert all(p is not None and p <= 0 for p in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == list(range(len(ids)))
  both = client.completions.create(model="dummy", prompt=ids, max_tokens=6, echo=True, logprobs=0)
  assert both.choices[0].text.startswith("score this text") and len(both.choices[0].text) == len(ids) + 6
  assert both.choices[0].logprobs and len(both.choices[0].logprobs.tokens or []) == len(ids) + 6
  several = client.completions.create(model="dummy", prompt=["one", "two", "three"], max_tokens=4)
  alone = [
      client.completions.create(model="dummy", prompt=p, max_tokens=4).choices[0].text for p in ("one", "two", "three")
  ]
  assert [c.text for c in several.choices] == alone
  streamed = ["", "", ""]
  for chunk in client.completions.create(model="dummy", prompt=["one", "two", "three"], max_tokens=4, stream=True):
    streamed[chunk.choices[0].index] += chunk.choices[0].text
  assert streamed == alone


@pytest.mark.parametrize(
    "fields",
    [{"prompt": []}, {"prompt": [-1]}, {"prompt": [999999]}, {"prompt": [[1], []]}, {"prompt": "x", "suffix": "y"},
     {"prompt": "x", "logprobs": 6}, {"prompt": "x", "max_tokens": 0}, {"prompt": ["a", 1]}]
)
def test_bad_completions(node: NodeProcess, fields: dict[str, Any]) -> None:
  status, body = node.post("/v1/completions", {"model": "dummy", **fields})
  assert status == 400 and set(body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body", [
        b"",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'"x"',
        {},
        {"messages": None},
        {"messages": "hi"},
        {"messages": []},
        {"messages": [123]},
        {"messages": [{}]},
        {"messages": [{"role": 5, "content": "x"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "nobody", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": HELLO, "temperature": 3},
        {"messages": HELLO, "temperature": "hot"},
        {"messages": HELLO, "top_p": -1},
        {"messages": HELLO, "n": 129},
        {"messages": HELLO, "n": 0},
        {"messages": HELLO, "seed": 2**64},
        {"messages": HELLO, "max_tokens": -2},
        {"messages": HELLO, "stop": ["a"] * 65},
        {"messages": HELLO, "top_logprobs": 21, "logprobs": True},
        {"messages": HELLO, "top_logprobs": 2},
        {"messages": [{"role": "user", "content": "x" * 20000}]},
    ]
)
def test_bad_requests_are_400_in_openais_shape(node: NodeProcess, body: Any) -> None:
  status, answer = node.post("/v1/chat/completions", body)
  assert status == 400 and set(answer["error"]) == {"message", "type", "param", "code"}
  assert answer["error"]["type"] == "invalid_request_error" and answer["error"]["message"]


def test_a_prompt_longer_than_the_context_says_both_numbers(node: NodeProcess) -> None:
  status, answer = node.chat("x" * 9000)
  assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
  assert "9007" in answer["error"]["message"] and "8192" in answer["error"]["message"]


def test_unknown_models_and_routes(node: NodeProcess, client: OpenAI) -> None:
  with pytest.raises(openai.NotFoundError, match="Did you mean smollm2-135m") as caught:
    client.chat.completions.create(model="smolm2-135", messages=HELLO)
  assert caught.value.code == "model_not_found"
  assert client.chat.completions.create(model="gpt-4o", messages=HELLO, max_tokens=1).model == "dummy"
  assert node.get("/v1/nothing")[0] == 404 and node.get("/v1/nothing")[1]["error"]["message"]
  assert node.get("/v1/chat/completions")[0] == 405
  assert node.post("/v1/chat/completions", {"model": "/etc/passwd", "messages": HELLO})[0] == 404


def test_unknown_fields_are_ignored_and_contents_may_be_parts(client: OpenAI) -> None:
  parts = [{"role": "developer", "content": "be brief"},
           {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
  plain = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
  answers = [
      client.chat.completions.create(model="dummy", messages=m, max_tokens=9, extra_body={"banana": 1})
      for m in (parts, plain)
  ]
  assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


def test_models_topology_and_health(node: NodeProcess, nodes: list[NodeProcess], client: OpenAI) -> None:
  assert {m.id for m in client.models.list()} == {"dummy"}
  assert "smollm2-135m" in {m.id for m in client.models.list(extra_query={"all": "true"})}
  assert client.models.retrieve("smollm2-135m").object == "model"
  with pytest.raises(openai.NotFoundError):
    client.models.retrieve("nosuch")
  status, topology = node.get("/v1/topology")
  assert status == 200 and set(topology["nodes"]) == {n.node_id for n in nodes}
  assert topology["nodes"][node.node_id]["engine"] == "dummy" and topology["engine"]["reason"]
  assert all(e["from_id"] == node_id for node_id, edges in topology["peer_graph"].items() for e in edges)
  assert node.get("/healthcheck") == (200, {"status": "ok"})
  encoded = node.post("/v1/chat/token/encode", {"messages": HELLO})[1]
  assert encoded["num_tokens"] == len(encoded["encoded_tokens"]) == encoded["length"] == len(encoded["encoded_prompt"])


def test_a_client_that_leaves_frees_the_ring(node: NodeProcess, nodes: list[NodeProcess], client: OpenAI) -> None:
  for _ in range(3):
    stream = client.chat.completions.create(
        model="dummy", messages=HELLO, max_tokens=8000, temperature=1.0, stream=True, logit_bias={"256": -100}
    )
    next(iter(stream))
    stream.close()
  started = time.monotonic()
  assert client.chat.completions.create(model="dummy", messages=HELLO, max_tokens=5).usage
  assert time.monotonic() - started < 30
  wait_until(lambda: sum("is cancelled" in n.log for n in nodes), 5, "the cancelling of abandoned requests")


def test_the_page_and_its_files(node: NodeProcess) -> None:
  address = urllib.parse.urlsplit(node.url)
  connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
  for path, kind in (("/", "text/html"), ("/static/main.js", "text/javascript"), ("/static/style.css", "text/css")):
    connection.request("GET", path)
    response = connection.getresponse()
    content = response.read().decode()
    assert response.status == 200 and response.headers["Content-Type"].startswith(kind) and content
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "http://" not in content and "https://" not in content
  for path in ("/static/..%2fconfig.py", "/static/nothing.js", "/static/../../config.py"):
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    assert response.status == 404
  connection.close()


def test_two_ports_cannot_be_one(node: NodeProcess, tmp_path: Path) -> None:
  port = node.url.rpartition(":")[2]
  second = NodeProcess(
      tmp_path,
      "--chatgpt-api-port",
      port,
      "--inference-engine",
      "dummy",
      "--discovery-module",
      "none",
      node_id="second"
  )
  assert second.process.wait(20) == 1
  second.stop()
  assert f"cannot listen on 127.0.0.1:{port}" in second.log and "--chatgpt-api-port" in second.log
