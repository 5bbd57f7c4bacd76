"""OpenAI's conversations: lists of items under one id, to which responses that name it add theirs."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from exo.api.caller import caller
from exo.api.errors import json_response
from exo.api.handlers import WithNode
from exo.api.kept import Item, KeptConversation, check_allowed, owner, page_of, recall
from exo.api.response_builder import ItemIds
from exo.api.response_items import as_kept, messages_of
from exo.api.response_tools import ToolSet
from exo.api.response_turn import add_items, resolved
from exo.api.responses_request import Metadata
from exo.api.schema import read_body
from exo.api.text_run import new_id
from exo.errors import RecordConflictError, RecordNotFoundError
from exo.orchestration.node import Node

_TRIES = 8
NewItems = Annotated[list[dict[str, Any]], Meta(max_length=20)]


class ConversationRequest(Struct, kw_only=True):
  items: NewItems | None = None
  metadata: Metadata | None = None


class ConversationUpdate(Struct, kw_only=True):
  metadata: Metadata | None = None


class ConversationItems(Struct, kw_only=True):
  items: NewItems


def add_routes(router: web.UrlDispatcher, prefix: str, with_node: WithNode) -> None:
  path = f"{prefix}/conversations"
  router.add_post(path, with_node(create))
  router.add_get(path + "/{id}", with_node(conversation))
  router.add_post(path + "/{id}", with_node(update))
  router.add_delete(path + "/{id}", with_node(delete))
  router.add_get(path + "/{id}/items", with_node(items))
  router.add_post(path + "/{id}/items", with_node(add))
  router.add_get(path + "/{id}/items/{item}", with_node(item))
  router.add_delete(path + "/{id}/items/{item}", with_node(delete_item))


def _told(kept: KeptConversation) -> dict[str, Any]:
  return {"id": kept.id, "object": "conversation", "created_at": kept.created_at, "metadata": kept.metadata}


async def create(request: web.Request, node: Node) -> web.Response:
  """Begin a conversation, with up to 20 items."""
  check_allowed(node, "conversation")
  body = await read_body(request, ConversationRequest) if await request.read() else ConversationRequest()
  kept = KeptConversation(id=new_id("conv_"), created_at=int(time.time()), metadata=body.metadata or {})
  ids = ItemIds(kept.id)
  kept.items = [as_kept(given) for given in ids.named(await _checked(node, body.items or []))]
  kept.used = ids.used
  await node.records.keep(await owner(node), kept.id, msgspec.json.encode(kept))
  return json_response(_told(kept))


async def _checked(node: Node, given: list[Item]) -> list[Item]:
  """Items that a later turn can read. Raises `InvalidRequestError`."""
  given = await resolved(node, given, [])
  for message in messages_of(given, ToolSet(())):
    message.for_template()  # what no chat can begin with would stand in the way of every later turn
  return given


async def conversation(request: web.Request, node: Node) -> web.Response:
  """A conversation that is kept, on whichever node."""
  return json_response(_told((await recall(node, request.match_info["id"], KeptConversation))[0]))


async def update(request: web.Request, node: Node) -> web.Response:
  """Exchange a conversation's metadata."""
  body = await read_body(request, ConversationUpdate)
  for _ in range(_TRIES):
    kept, found = await recall(node, request.match_info["id"], KeptConversation, own=True)
    kept.metadata = body.metadata or {}
    if await node.records.change(await owner(node), found, msgspec.json.encode(kept)):
      return json_response(_told(kept))
  raise RecordConflictError("the conversation is changed by others all the time: try again")


async def delete(request: web.Request, node: Node) -> web.Response:
  """Forget a conversation, wherever it is kept."""
  conversation_id = request.match_info["id"]
  if not conversation_id.startswith("conv_"):
    raise RecordNotFoundError(f"there is no conversation {conversation_id[:80]!r}")
  await node.records.forget(await owner(node), conversation_id, any_owner=caller().is_admin)
  return json_response({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


async def items(request: web.Request, node: Node) -> web.Response:
  """A conversation's items, by `limit`, `order` and `after`."""
  return json_response(page_of(request, (await recall(node, request.match_info["id"], KeptConversation))[0].items))


async def add(request: web.Request, node: Node) -> web.Response:
  """Add up to 20 items to a conversation."""
  body = await read_body(request, ConversationItems)
  added = await add_items(node, request.match_info["id"], await _checked(node, body.items))
  return json_response({
      "object": "list", "data": added, "first_id": added[0]["id"] if added else None,
      "last_id": added[-1]["id"] if added else None, "has_more": False
  })


async def item(request: web.Request, node: Node) -> web.Response:
  """One item of a conversation."""
  kept, _ = await recall(node, request.match_info["id"], KeptConversation)
  return json_response(kept.items[_index(kept, request.match_info["item"])])


async def delete_item(request: web.Request, node: Node) -> web.Response:
  """Take an item out of a conversation."""
  for _ in range(_TRIES):
    kept, found = await recall(node, request.match_info["id"], KeptConversation, own=True)
    del kept.items[_index(kept, request.match_info["item"])]
    if await node.records.change(await owner(node), found, msgspec.json.encode(kept)):
      return json_response(_told(kept))
  raise RecordConflictError("the conversation is changed by others all the time: try again")


def _index(kept: KeptConversation, item_id: str) -> int:
  at = next((i for i, known in enumerate(kept.items) if known.get("id") == item_id), None)
  if at is None:
    raise RecordNotFoundError(f"there is no item {item_id[:80]!r} in {kept.id}")
  return at
