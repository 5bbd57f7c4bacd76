"""Responses and conversations that are kept: over the ring, by key, within bounds, and honestly where they cannot be."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

from exo.api.keys import ApiKeyStore
from test.support.disks import own_disk
from test.support.http import assert_error, call
from test.support.nodes import NodeProcess, free_port, wait_until

BASE = ("--inference-engine", "dummy", "--default-model", "dummy")
CLUSTER = ("--cluster-key", "a key that the nodes of this test hold")
ASKED: dict[str, Any] = {"model": "dummy", "max_output_tokens": 6}


@contextmanager
def apart(folder: Path, count: int, *arguments: str,
          keys: tuple[str, ...] = ()) -> Iterator[tuple[list[NodeProcess], dict[str, str]]]:
  """A ring whose nodes have a home each; all of them know the same API keys (role user) by these names."""
  port = str(free_port(socket.SOCK_DGRAM))
  first = folder / "home0" / ".exo"
  texts = {name: ApiKeyStore(first).add(name, "user") for name in keys}
  nodes = []
  with ExitStack() as stack:
    for i in range(count):
      home = folder / f"home{i}"
      if keys and i:
        (home / ".exo").mkdir(parents=True)
        shutil.copy(first / "api_keys.json", home / ".exo")
      node = NodeProcess(home, *BASE, "--listen-port", port, "--broadcast-port", port, *arguments, node_id=f"node{i}")
      stack.callback(node.stop)
      nodes.append(node)
    for node in nodes:
      node.wait_ready()
    said = f"node{count - 1}"
    if count > 1:
      wait_until(lambda: keys or all(len(node.peers()) == count for node in nodes), 15, "a ring")
      wait_until(lambda: all("joined" in node.log for node in nodes), 15, f"a ring up to {said}")
    yield nodes, texts


def client(node: NodeProcess, key: str = "any") -> OpenAI:
  return OpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
  with apart(tmp_path_factory.mktemp("pair"), 2, *CLUSTER) as (nodes, _):
    yield nodes


def test_21_line_1_requirement_39_a_response_is_read_continued_and_deleted_at_any_node(pair: list[NodeProcess]) -> None:
  here, there = map(client, pair)
  first = here.responses.create(input="Remember the number 41.", instructions="Be kind.", metadata={"a": "b"}, **ASKED)
  assert first.store is True and first.metadata == {"a": "b"}
  for one in (here, there):
    assert one.responses.retrieve(first.id).to_dict() == first.to_dict()
    assert [i.type for i in one.responses.input_items.list(first.id)] == ["message"]
  alone = there.responses.create(input="Which number?", **ASKED)
  second = there.responses.create(input="Which number?", previous_response_id=first.id, **ASKED)
  assert second.previous_response_id == first.id and second.instructions is None
  assert second.usage and alone.usage and second.usage.input_tokens > alone.usage.input_tokens + 20
  sent: Any = [{"role": "user", "content": "Remember the number 41."}, first.output[0].to_dict(),
               {"role": "user", "content": "Which number?"}]
  assert here.responses.create(input=sent, **ASKED).output_text == second.output_text
  listed = list(here.responses.input_items.list(second.id, order="asc", limit=1))
  assert [getattr(item, "role", "") for item in listed] == ["user", "assistant", "user"]
  assert len({item.id for item in listed}) == 3
  there.responses.delete(first.id)
  for one in (here, there):
    with pytest.raises(NotFoundError):
      one.responses.retrieve(first.id)
    with pytest.raises(BadRequestError) as told:
      one.responses.create(input="x", previous_response_id=first.id, **ASKED)
    assert told.value.code == "previous_response_not_found"
  assert here.responses.retrieve(second.id).output_text == second.output_text  # it holds what it went on from


def test_21_line_1_requirement_47_a_finished_stream_is_told_again(pair: list[NodeProcess]) -> None:
  here, there = map(client, pair)
  events = [e.to_dict() for e in here.responses.create(input="hello", stream=True, **ASKED)]
  response_id = str(events[0]["response"]["id"])  # type: ignore[index]
  again = [e.to_dict() for e in there.responses.retrieve(response_id, stream=True)]
  assert [e["sequence_number"] for e in again] == list(range(len(events)))
  assert again[2:] == events[2:]
  rest = [e.to_dict() for e in there.responses.retrieve(response_id, stream=True, starting_after=4)]
  assert rest == events[5:]
  whole = here.responses.create(input="hello", **ASKED)
  assert [e.type for e in here.responses.retrieve(whole.id, stream=True)] == [e["type"] for e in events]
  assert_error(*pair[0].get(f"/v1/responses/{response_id}?stream=true&starting_after=x"), 400)


@pytest.mark.clients
def test_21_line_1_openai_agents_remember(pair: list[NodeProcess], monkeypatch: pytest.MonkeyPatch) -> None:
  agents = pytest.importorskip("agents", reason="openai-agents is not installed")
  monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
  asked = agents.ModelSettings(max_tokens=100)

  def agent(asker: AsyncOpenAI) -> Any:
    model = agents.OpenAIResponsesModel(model="dummy", openai_client=asker)
    return agents.Agent(name="a", instructions="Be kind.", tools=[now], model=model, model_settings=asked)

  @agents.function_tool  # type: ignore[untyped-decorator]
  def now() -> str:
    """The time."""
    return "12:00"

  async def talk() -> None:
    here, there = (AsyncOpenAI(base_url=f"{n.url}/v1", api_key="none", max_retries=0, timeout=60) for n in pair)
    async with here, there:
      asked.tool_choice = "required"
      first = await agents.Runner.run(agent(here), "What time is it?")
      assert {"ToolCallItem", "ToolCallOutputItem"} <= {type(item).__name__ for item in first.new_items}
      asked.tool_choice = "auto"
      second = await agents.Runner.run(agent(there), "Again?", previous_response_id=first.last_response_id)
      streamed = agents.Runner.run_streamed(agent(here), "And now?", previous_response_id=second.last_response_id)
      assert [event async for event in streamed.stream_events()]
    kept = client(pair[0]).responses.input_items.list(str(streamed.last_response_id), order="asc")
    assert [item.content[0].text for item in kept if getattr(item, "role", "") == "user"] == [  # type: ignore[union-attr]
        "What time is it?", "Again?", "And now?"
    ]  # yapf: disable

  asyncio.run(talk())


def test_21_line_1_requirement_39_conversations(pair: list[NodeProcess]) -> None:
  here, there = map(client, pair)
  made = here.conversations.create(items=[{"role": "user", "content": "I am Ann."}], metadata={"topic": "names"})
  assert there.conversations.retrieve(made.id).metadata == {"topic": "names"}
  answer = there.responses.create(input="Who am I?", conversation=made.id, **ASKED)
  assert answer.conversation and answer.conversation.id == made.id
  kept = list(here.conversations.items.list(made.id, order="asc"))
  assert [getattr(item, "role", "") for item in kept] == ["user", "user", "assistant"]
  assert answer.usage and answer.usage.input_tokens > 20
  added = there.conversations.items.create(made.id, items=[{"role": "user", "content": "Bye."}]).data[0]
  assert there.conversations.items.retrieve(str(added.id), conversation_id=made.id).type == "message"
  assert here.conversations.items.list(made.id, limit=1).data[0].id == added.id  # the newest first
  there.conversations.items.delete(str(added.id), conversation_id=made.id)
  assert len(list(here.conversations.items.list(made.id))) == 3
  assert here.conversations.update(made.id, metadata={"topic": "x"}).id == made.id
  both = {"input": "x", "conversation": made.id, "previous_response_id": answer.id, **ASKED}
  assert_error(*pair[0].post("/v1/responses", both), 400)
  there.conversations.delete(made.id)
  assert_error(*pair[0].get(f"/v1/conversations/{made.id}"), 404)
  assert_error(*pair[0].post("/v1/responses", {"input": "x", "conversation": made.id, **ASKED}), 404)
  for field, kind in (("conversation", answer.id), ("previous_response_id", made.id)):
    assert_error(*pair[0].post("/v1/responses", {"input": "x", field: kind, **ASKED}), 400, 404)
  assert_error(*pair[0].get(f"/v1/conversations/{answer.id}"), 404)


def test_21_line_1_references_stand_for_their_items(pair: list[NodeProcess]) -> None:
  here, there = map(client, pair)
  first = here.responses.create(input="Remember the number 41.", **ASKED)
  given = here.responses.input_items.list(first.id).data[0]
  references: Any = [{"type": "item_reference", "id": given.id}, {"id": first.output[0].id}]
  answer = there.responses.create(input=[*references, {"role": "user", "content": "Which?"}], **ASKED)
  sent: Any = [given.to_dict(), first.output[0].to_dict(), {"role": "user", "content": "Which?"}]
  assert answer.output_text == there.responses.create(input=sent, **ASKED).output_text
  wrong = {"input": [{"type": "item_reference", "id": "msg_" + "0" * 38}], **ASKED}
  assert "send the item itself" in assert_error(*pair[0].post("/v1/responses", wrong), 404)["message"]


@pytest.mark.parametrize("item", [{"type": "item_reference", "id": {}}, {"type": "web_search_call", "id": [1]}])
def test_21_line_1_an_id_that_is_no_text_is_told(pair: list[NodeProcess], item: dict[str, Any]) -> None:
  """Schemathesis found the first: it was an error of the server."""
  said = [item, {"role": "user", "content": "hello"}]
  for path, field in (("/v1/responses", "input"), ("/v1/conversations", "items")):
    assert "id is a text" in assert_error(*pair[0].post(path, {field: said, **ASKED}), 400)["message"]


@pytest.mark.parametrize(
    "item", [{"role": "system"}, {"role": "nobody", "content": "x"}, {"role": "user", "content": None}]
)
def test_21_line_1_an_item_that_no_turn_could_read_is_not_kept(pair: list[NodeProcess], item: dict[str, Any]) -> None:
  assert_error(*pair[0].post("/v1/conversations", {"items": [item]}), 400)
  made = client(pair[0]).conversations.create()
  assert_error(*pair[0].post(f"/v1/conversations/{made.id}/items", {"items": [item]}), 400)
  assert client(pair[0]).responses.create(input="hello", conversation=made.id, **ASKED).output_text


def test_21_line_1_lists_are_paged(pair: list[NodeProcess]) -> None:
  here = client(pair[0])
  many: Any = [{"role": "user", "content": f"number {i}"} for i in range(25)]
  made = here.responses.create(input=many, **ASKED)
  page = here.responses.input_items.list(made.id)
  assert len(
      page.data
  ) == 20 and page.has_more and page.data[0].content[0].text == "number 24"  # type: ignore[union-attr, index]
  assert len(list(page)) == 25 and len(list(here.responses.input_items.list(made.id, order="asc", limit=7))) == 25
  path = f"/v1/responses/{made.id}/input_items"
  for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=nothing"):
    assert_error(*pair[0].get(f"{path}?{query}"), 400)


def test_21_line_1_what_asks_for_no_answer(pair: list[NodeProcess]) -> None:
  here = client(pair[0])
  first = here.responses.create(input="hello", **ASKED)
  assert first.usage
  count = here.responses.input_tokens.count(model="dummy", input="hello")
  assert count.input_tokens == first.usage.input_tokens and count.object == "response.input_tokens"
  further = here.responses.input_tokens.count(model="dummy", input="hello", previous_response_id=first.id)
  assert further.input_tokens > count.input_tokens
  small = here.responses.compact(model="dummy", input="I am Ann.", previous_response_id=first.id)
  assert [item.type for item in small.output] == ["message", "message", "compaction"] and small.usage.output_tokens
  body = {"model": "dummy", "input": "I am Ann.", "previous_response_id": first.id}
  items: Any = pair[1].post("/v1/responses/compact", body)[1]["output"]
  assert here.responses.create(input=[*items, {"role": "user", "content": "Go on."}], **ASKED).output_text
  items[-1]["encrypted_content"] = "exo-summary-1:not base64!"
  assert_error(*pair[0].post("/v1/responses", {"input": items, **ASKED}), 400)
  assert_error(*pair[0].post(f"/v1/responses/{first.id}/cancel", {}), 400)
  assert_error(*pair[0].post("/v1/responses/resp_" + "0" * 32 + "/cancel", {}), 404)


def test_21_line_1_store_false_is_not_kept(pair: list[NodeProcess]) -> None:
  answer = client(pair[0]).responses.create(input="hello", store=False, **ASKED)
  assert answer.store is False
  for path in (answer.id, "resp_1", "..%2f..%2fapi_keys", "conv_" + "0" * 32):
    assert_error(*pair[1].get(f"/v1/responses/{path}"), 404)


def test_21_line_1_files_are_for_this_user_alone(pair: list[NodeProcess]) -> None:
  client(pair[0]).responses.create(input="hello", **ASKED)
  folder = pair[0].home / ".exo" / "kept"
  files = [path for path in folder.rglob("*") if path.is_file()]
  assert files and all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
  assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in [folder, *folder.iterdir()])
  assert not list((pair[1].home / ".exo" / "kept").glob(f"*/{files[0].name}"))


def test_21_line_1_requirement_22_of_robustness_what_is_kept_belongs_to_its_key(tmp_path: Path) -> None:
  """Also over a ring whose nodes share no cluster key: they are shown what follows from the key alone."""
  with apart(tmp_path, 2, keys=("ann", "bob")) as (nodes, keys):
    ann, bob = client(nodes[0], keys["ann"]), client(nodes[0], keys["bob"])
    answer = ann.responses.create(input="My secret is 41.", **ASKED)
    made = ann.conversations.create()
    there = client(nodes[1], keys["ann"])
    assert there.responses.retrieve(answer.id).output_text == answer.output_text
    assert there.responses.create(input="x", conversation=made.id, previous_response_id=None, **ASKED).output_text
    assert len(list(ann.conversations.items.list(made.id))) == 2
    for other in (bob, client(nodes[1], keys["bob"])):
      for ask in (other.responses.retrieve, other.responses.delete, other.responses.input_items.list):
        with pytest.raises(NotFoundError) as told:
          ask(answer.id)  # type: ignore[operator]
        assert "secret" not in str(told.value)
      with pytest.raises(BadRequestError):
        other.responses.create(input="x", previous_response_id=answer.id, **ASKED)
    there.responses.delete(answer.id)  # a user's own, at another node
    with pytest.raises(NotFoundError):
      ann.responses.retrieve(answer.id)


def test_21_line_1_it_outlives_its_node_and_leaves_with_it(tmp_path: Path) -> None:
  """Without keys and without a cluster key, what is kept stays on its node."""
  with apart(tmp_path, 2) as (nodes, _):
    answer = client(nodes[0]).responses.create(input="hello", **ASKED)
    assert_error(*nodes[1].get(f"/v1/responses/{answer.id}"), 404)
    file = next((nodes[0].home / ".exo" / "kept").rglob(f"{answer.id}*"))
    nodes[0].stop()
    assert_error(*nodes[1].get(f"/v1/responses/{answer.id}"), 404)
    again = NodeProcess(nodes[0].home, *BASE, "--discovery-module", "none", node_id="again").wait_ready()
    try:
      assert client(again).responses.retrieve(answer.id).output_text == answer.output_text
      data = file.read_bytes()
      for damaged in (data[:len(data) // 2], data[:-9] + b"damaged!!", b"", b"\xc1" * 100):
        file.write_bytes(damaged)
        assert "damaged" in assert_error(*again.get(f"/v1/responses/{answer.id}"), 404)["message"]
      assert call(again, "DELETE", f"/v1/responses/{answer.id}")[0] == 200 and not file.exists()
    finally:
      again.stop()


def test_21_line_1_no_store_refuses_in_words(tmp_path: Path) -> None:
  node = NodeProcess(tmp_path, *BASE, "--discovery-module", "none", "--no-store", node_id="forgets").wait_ready()
  try:
    status, answer = node.post("/v1/responses", {"input": "hello", **ASKED})
    assert status == 200 and answer["store"] is False
    assert_error(*node.get(f"/v1/responses/{answer['id']}"), 404)
    for fields in ({"store": True}, {"previous_response_id": answer["id"]}, {"conversation": "conv_1"}):
      error = assert_error(*node.post("/v1/responses", {"input": "hello", **ASKED, **fields}), 400)
      assert "--no-store" in error["message"] and error["param"] == next(iter(fields))
    assert "--no-store" in assert_error(*node.post("/v1/conversations", {}), 400)["message"]
    assert not (tmp_path / ".exo" / "kept").exists()
  finally:
    node.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_21_line_1_a_full_disk_costs_the_memory_and_not_the_answer(tmp_path: Path) -> None:
  home = tmp_path / "home"
  (home / ".exo").mkdir(parents=True)
  with own_disk(tmp_path / "kept", "size=64k") as disk:
    (home / ".exo" / "kept").symlink_to(disk)
    node = NodeProcess(home, *BASE, "--discovery-module", "none", node_id="full").wait_ready()
    try:
      (disk / "filled").write_bytes(bytes(64 * 1024))
      status, answer = node.post("/v1/responses", {"input": "hello", **ASKED})
      assert status == 200 and answer["status"] == "incomplete" and answer["store"] is False
      assert_error(*node.get(f"/v1/responses/{answer['id']}"), 404)
      assert assert_error(*node.post("/v1/conversations", {}), 503)["code"] == "records_unavailable"
      (disk / "filled").unlink()
      assert node.post("/v1/responses", {"input": "hello", **ASKED})[1]["store"] is True
    finally:
      node.stop()
