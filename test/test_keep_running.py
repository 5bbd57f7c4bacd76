"""Answers that go on without their client where it asks for that, and only there (issue 22, line 7)."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from exo.api.kept_answers import KeptAnswer, KeptAnswers
from exo.errors import InvalidRequestError, RequestNotFoundError
from test.support.nodes import NodeProcess, ring, wait_until

CHAT = {
    "messages": [{"role": "user", "content": "count"}], "seed": 7, "temperature": 1, "stream": True, "ignore_eos": True,
    "max_tokens": 600, "stream_options": {"include_usage": True}
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  flags = ("--inference-engine", "dummy", "--default-model", "dummy")
  with ring(tmp_path_factory.mktemp("kept"), 1, *flags) as (node, ):
    yield node


class Client:
  """One connection with one streamed request, read line by line."""
  def __init__(self, node: NodeProcess, method: str, path: str, body: Any = None, **headers: str) -> None:
    self._connection = http.client.HTTPConnection(urlsplit(node.url).netloc, timeout=60)
    data = None if body is None else json.dumps(body)
    self._connection.request(method, path, data, headers | ({"Content-Type": "application/json"} if data else {}))
    self.response = self._connection.getresponse()
    self.last = 0  # the number of the last event

  def events(self) -> Iterator[Any]:
    for line in self.response:
      if line.startswith(b"id: "):
        self.last = int(line[4:])
      elif line.startswith(b"data: {"):
        yield json.loads(line[6:])

  def leave(self) -> None:
    self.response.close()
    self._connection.close()


def text_of(events: list[Any]) -> str:
  return "".join(choice["delta"].get("content", "") for event in events for choice in event.get("choices", ()))


def begun(node: NodeProcess, **fields: Any) -> tuple[Client, list[Any]]:
  """A request of which some of the answer has come."""
  client = Client(node, "POST", "/v1/chat/completions", CHAT | fields)
  events = []
  for event in client.events():
    events.append(event)
    if len(events) >= 5:
      break
  return client, events


def outcomes(node: NodeProcess, outcome: str) -> int:
  mark = f'exo_requests_total{{model="dummy",outcome="{outcome}"}} '
  return next((int(float(line.removeprefix(mark))) for line in node.metrics().splitlines() if line.startswith(mark)), 0)


def test_22_line_7_an_answer_goes_on_and_is_taken_up_by_its_id(node: NodeProcess) -> None:
  whole = Client(node, "POST", "/v1/chat/completions", CHAT)
  expected = text_of(list(whole.events()))
  whole.leave()
  client, events = begun(node, keep_running=True)
  assert events[0]["keep_running"] is True and client.last == 5
  done = outcomes(node, "completed")
  client.leave()
  wait_until(lambda: outcomes(node, "completed") == done + 1, 30, "the end of an answer that nobody reads")
  again = Client(node, "GET", f"/v1/chat/completions/{events[0]['id']}/stream", **{"Last-Event-ID": "5"})
  rest = list(again.events())
  again.leave()
  assert text_of(events + rest) == expected and len(expected) > 500
  assert [event["id"] for event in events + rest] == [events[0]["id"]] * (len(events) + len(rest))
  assert rest[-1]["usage"]["completion_tokens"] == 600
  once_more = Client(node, "GET", f"/v1/chat/completions/{events[0]['id']}/stream?starting_after=0")
  assert text_of(list(once_more.events())) == expected
  once_more.leave()


def test_22_line_7_every_other_answer_ends_with_its_client(node: NodeProcess) -> None:
  cancelled = outcomes(node, "cancelled")
  client, events = begun(node, max_tokens=100_000)
  assert "keep_running" not in events[0] and client.last == 0
  client.leave()
  wait_until(lambda: outcomes(node, "cancelled") == cancelled + 1, 5, "the cancelling of the request")
  assert node.get(f"/v1/chat/completions/{events[0]['id']}/stream")[0] == 404


def test_22_line_7_one_that_goes_on_is_ended_by_its_id(node: NodeProcess) -> None:
  client, events = begun(node, keep_running=True, max_tokens=100_000)
  client.leave()
  cancelled = outcomes(node, "cancelled")
  assert node.post(f"/v1/cancel/{events[0]['id']}", {})[0] == 200
  again = Client(node, "GET", f"/v1/chat/completions/{events[0]['id']}/stream")
  assert list(again.events())[-1]["error"]["code"] == "cancelled"
  again.leave()
  assert outcomes(node, "cancelled") == cancelled + 1


def test_22_line_7_what_cannot_be_is_said(node: NodeProcess) -> None:
  status, answer = node.post(
      "/v1/chat/completions", CHAT | {"stream": False, "stream_options": None, "keep_running": True}
  )
  assert status == 400 and "stream: true" in answer["error"]["message"] and answer["error"]["param"] == "keep_running"
  status, answer = node.get("/v1/chat/completions/chatcmpl-none/stream")
  assert status == 404 and answer["error"]["code"] == "response_lost" and "ask again" in answer["error"]["message"]
  status, answer = node.get("/v1/chat/completions/chatcmpl-none/stream?starting_after=x")
  assert status == 400 and answer["error"]["param"] == "starting_after"
  status, answer = node.post("/v1/chat/completions", CHAT | {"keep_running": True, "model": "no-such"})
  assert status == 404 and answer["error"]["code"] == "model_not_found"
  document = node.get("/openapi.json")[1]
  field = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]["keep_running"]
  assert "ten minutes" in field["description"]
  assert "get" in document["paths"]["/v1/chat/completions/{id}/stream"]


def test_22_line_7_no_more_than_eight_of_one_client_go_on(node: NodeProcess) -> None:
  clients = [begun(node, keep_running=True, max_tokens=100_000) for _ in range(8)]
  try:
    ninth, events = begun(node, keep_running=True, max_tokens=100_000)
    assert events[0]["keep_running"] is False and ninth.last == 0
    cancelled = outcomes(node, "cancelled")
    ninth.leave()
    wait_until(lambda: outcomes(node, "cancelled") == cancelled + 1, 5, "the cancelling of the ninth")
  finally:
    for client, events in clients:
      client.leave()
      node.post(f"/v1/cancel/{events[0]['id']}", {})


async def until(condition: Callable[[], bool]) -> None:
  async with asyncio.timeout(10):
    while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
      await asyncio.sleep(0.01)


async def endless(answer: KeptAnswer) -> None:
  answer.open("a", False, ())
  while True:
    await answer.send({"word": "x" * 100})
    await asyncio.sleep(0.001)


async def short(answer: KeptAnswer) -> None:
  answer.open("s", False, ())
  await answer.send({"word": "x"})


def test_22_line_7_its_time_without_a_reader_is_bounded() -> None:
  async def scene() -> None:
    kept = KeptAnswers(kept_s=0.05)
    answer = await kept.start("me", endless)
    with answer.reader(0) as events:
      await asyncio.sleep(0.2)
      assert await events() and len(kept) == 1 and kept.find("a", "me") is answer
    await until(lambda: not len(kept))
    with pytest.raises(RequestNotFoundError):
      kept.find("a", "me")
    await kept.close()
    assert answer.over

  asyncio.run(scene())


def test_22_line_7_its_size_is_bounded() -> None:
  """One that grows too long serves who reads it, keeps nothing that they have, and ends with them."""
  async def scene() -> None:
    kept = KeptAnswers(max_bytes=5_000)
    answer = await kept.start("me", endless)
    read = 0
    with answer.reader(0) as events:
      while read < 100_000:
        read += len(await events())
      with pytest.raises(RequestNotFoundError):
        kept.find("a", "me")
      assert len(kept) == 1
    assert not len(kept)
    await kept.close()
    assert answer.over

  asyncio.run(scene())


def test_22_line_7_one_that_is_over_makes_way_and_others_are_strangers() -> None:
  async def scene() -> None:
    kept = KeptAnswers(most=2, most_of_one=1)
    mine = await kept.start("me", endless)
    assert not kept.has_room("me") and kept.has_room("you")
    yours = await kept.start("you", short)
    await until(lambda: yours.over)
    assert kept.find("s", None) is yours and kept.find("s", "you") is yours
    with pytest.raises(RequestNotFoundError):
      kept.find("s", "me")
    assert kept.has_room("third") and len(kept) == 1  # yours has made way

    async def refused(_: KeptAnswer) -> None:
      raise InvalidRequestError("no")

    with pytest.raises(InvalidRequestError):
      await kept.start("third", refused)
    assert len(kept) == 1
    await kept.close()
    assert mine.over

  asyncio.run(scene())


if __name__ == "__main__":
  raise SystemExit(pytest.main([str(Path(__file__)), "-q"]))
