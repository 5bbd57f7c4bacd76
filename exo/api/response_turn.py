"""One turn of a conversation that is kept: what came before it, and what of it is kept afterwards."""

from __future__ import annotations

from typing import Any

import msgspec

from exo.api.aside import aside
from exo.api.kept import Item, KeptConversation, KeptResponse, check_allowed, owner, recall
from exo.api.response_builder import ItemIds, record_of
from exo.api.response_items import as_kept, id_of, kind_of
from exo.api.responses_request import ResponsesRequest
from exo.errors import (
    InvalidRequestError,
    QueueFullError,
    RecordConflictError,
    RecordNotFoundError,
    RecordsUnavailableError,
)
from exo.log import log
from exo.networking.record_messages import MAX_RECORD_BYTES
from exo.orchestration.node import Node

_MOST_REFERENCES = 256
_TRIES = 8  # to add to a conversation to which others add
_MOST_ITEMS = 20_000
_MOST_EVENT_BYTES = 2 * MAX_RECORD_BYTES  # before they are packed


class Turn:
  """`before` are the items of earlier turns, `items` those of this one, references replaced by what they stand for."""
  def __init__(self, node: Node, body: ResponsesRequest, before: list[Item], items: list[Item], keeps: bool) -> None:
    self._node, self._body = node, body
    self.before, self.items, self.keeps = before, items, keeps

  @property
  def whole(self) -> list[Item]:
    return [*self.before, *self.items]

  def begin(self, response_id: str) -> ItemIds:
    """The response has an id: its input's items get theirs."""
    ids = ItemIds(response_id)
    self.items = [as_kept(item) for item in ids.named(self.items)]
    return ids

  async def end(self, response: dict[str, Any], events: list[dict[str, Any]]) -> None:
    """Keep it, before its client is told that it is complete. What cannot be kept says so in its `store`.

    Raises what keeps it out of its conversation.
    """
    if self._body.conversation_id is not None:
      await add_items(self._node, self._body.conversation_id, [*self.items, *response["output"]])
    if not self.keeps:
      return
    kept = KeptResponse(response=response, items=self.items, before=self.before, events=events)
    try:
      json = await aside(_size(self.before) + _size(self.items) + len(events) * 200, _encoded, kept)
      await self._node.records.keep(await owner(self._node), response["id"], json)
    except (RecordsUnavailableError, QueueFullError) as error:
      log(0, "%s is not kept: %s", response["id"], error)
      response["store"] = False


def _encoded(kept: KeptResponse) -> bytes:
  json = msgspec.json.encode(kept)
  if len(json) > _MOST_EVENT_BYTES and kept.events:
    kept.events = []
    json = msgspec.json.encode(kept)
  return json


def _size(items: list[Item]) -> int:
  """About how many characters, at a glance."""
  return sum(len(str(item.get("content") or item.get("output") or "")) for item in items[-64:]) + 100 * len(items)


async def begin_turn(node: Node, body: ResponsesRequest) -> Turn:
  """Raises `InvalidRequestError` for what this node does not do or keep, and what `recall` raises."""
  body.check()
  if body.store:
    check_allowed(node, "store")
  before: list[Item] = []
  if body.previous_response_id is not None:
    check_allowed(node, "previous_response_id")
    before = (await _previous(node, body.previous_response_id)).whole
  elif (conversation_id := body.conversation_id) is not None:
    check_allowed(node, "conversation")
    before = (await recall(node, conversation_id, KeptConversation, own=True))[0].items
  items = await resolved(node, body.items, before)
  return Turn(node, body, before, items, body.store is not False and node.records.allowed)


async def _previous(node: Node, response_id: str) -> KeptResponse:
  try:
    return (await recall(node, response_id, KeptResponse))[0]
  except RecordNotFoundError as error:
    field = "previous_response_id"
    raise InvalidRequestError(f"{field}: {error.message}", field, "previous_response_not_found") from error


async def resolved(node: Node, items: list[Item], before: list[Item]) -> list[Item]:
  """References replaced by the items that they name: of earlier turns, of what is kept. One to what the model has before it
  already is left out. Raises `InvalidRequestError`, `RecordNotFoundError`.
  """
  references = sum(kind_of(item) == "item_reference" for item in items)
  if not references:
    return items
  if references > _MOST_REFERENCES:
    raise InvalidRequestError(f"input: {references} references, {_MOST_REFERENCES} are allowed", "input")
  known, seen = {item.get("id") for item in before}, dict[str, dict[Any, Item]]()
  out: list[Item] = []
  for item in items:
    if kind_of(item) != "item_reference":
      out.append(item)
    elif (named := id_of(item)) not in known:
      check_allowed(node, "input")
      out.append(await _referred(node, named or "", seen))
  return out


async def _referred(node: Node, item_id: str, seen: dict[str, dict[Any, Item]]) -> Item:
  record = record_of(item_id)
  if record not in seen:
    seen[record] = {}
    for prefix in ("resp_", "conv_"):
      try:
        if prefix == "resp_":
          items = (await recall(node, prefix + record, KeptResponse))[0].whole
        else:
          items = (await recall(node, prefix + record, KeptConversation))[0].items
      except RecordNotFoundError:
        continue
      seen[record] = {item.get("id"): item for item in items}
      break
  if item_id not in seen[record]:
    raise RecordNotFoundError(f"input: there is no item {item_id[:80]!r}: send the item itself")
  return seen[record][item_id]


async def add_items(node: Node, conversation_id: str, items: list[Item]) -> list[Item]:
  """To the end of a conversation, wherever it is kept; returns them with their ids. Raises what `recall` raises."""
  for _ in range(_TRIES):
    conversation, found = await recall(node, conversation_id, KeptConversation, own=True)
    ids = ItemIds(conversation.id, conversation.used)
    added = [as_kept(item) for item in ids.named(items)]
    if len(conversation.items) + len(added) > _MOST_ITEMS:
      raise InvalidRequestError(f"{conversation_id} is full: it has {len(conversation.items)} items", "conversation")
    conversation.items, conversation.used = [*conversation.items, *added], ids.used
    if await node.records.change(await owner(node), found, msgspec.json.encode(conversation)):
      return added
  raise RecordConflictError(f"{conversation_id} is changed by others all the time: try again")
