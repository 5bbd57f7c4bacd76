"""What clients have had kept: responses and conversations, by the ids that they were told."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct

from exo.api.aside import aside
from exo.api.caller import caller
from exo.errors import InvalidRequestError, RecordDamagedError, RecordNotFoundError
from exo.orchestration.kept_records import Found
from exo.orchestration.node import Node
from exo.orchestration.record import Owner

Item = dict[str, Any]
_PAGE, _LONGEST_PAGE = 20, 100


class KeptResponse(Struct, kw_only=True):
  """`before` are the items that came before its own input `items`; `events` those of its stream that tell of its output, none
  where they would take too much room.
  """
  response: dict[str, Any]
  items: list[Item]
  before: list[Item]
  events: list[dict[str, Any]] = []

  @property
  def whole(self) -> list[Item]:
    """What the next turn goes on from."""
    output: list[Item] = self.response.get("output") or []
    return [*self.before, *self.items, *output]


class KeptConversation(Struct, kw_only=True):
  """`used` ids of items were given."""
  id: str
  created_at: int
  metadata: dict[str, str] = {}
  items: list[Item] = []
  used: int = 0


Kept = TypeVar("Kept", KeptResponse, KeptConversation)


async def owner(node: Node) -> Owner:
  """The one for whom something is kept in this request."""
  return await node.records.owner(caller().key)


def check_allowed(node: Node, field: str) -> None:
  """Raises `InvalidRequestError` where nothing is kept."""
  if not node.records.allowed:
    raise InvalidRequestError(
        f"{field}: this node keeps nothing (--no-store): send the whole conversation in input, and store: false", field
    )


async def recall(node: Node, record_id: str, kind: type[Kept], *, own: bool = False) -> tuple[Kept, Found]:
  """From this node or another one; an admin may read what is not his `own`, which he cannot change.

  Raises `RecordNotFoundError`, `RecordDamagedError`, `RecordsUnavailableError`."""
  if not record_id.startswith("resp_" if kind is KeptResponse else "conv_"):
    raise RecordNotFoundError(f"nothing of this kind is kept under {record_id[:80]!r}")
  found = await node.records.find(await owner(node), record_id, any_owner=caller().is_admin and not own)
  try:
    json = await asyncio.to_thread(found.record.json)
    return await aside(len(json), lambda: msgspec.json.decode(json, type=kind)), found
  except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
    raise RecordDamagedError(f"what was kept of {record_id} is damaged") from error


def page_of(request: web.Request, items: list[Item]) -> dict[str, Any]:
  """A list of items as `limit`, `order` and `after` of the query ask for it. Raises `InvalidRequestError`."""
  query = request.query
  limit = query.get("limit", str(_PAGE))
  if not (limit.isascii() and limit.isdigit() and len(limit) < 5 and 1 <= int(limit) <= _LONGEST_PAGE):
    raise InvalidRequestError(f"limit is a number from 1 to {_LONGEST_PAGE}", "limit")
  order = query.get("order", "desc")
  if order not in ("asc", "desc"):
    raise InvalidRequestError("order is asc or desc", "order")
  shown = items if order == "asc" else items[::-1]
  if (after := query.get("after")) is not None:
    at = next((i for i, item in enumerate(shown) if item.get("id") == after), None)
    if at is None:
      raise InvalidRequestError(f"after: there is no item {after[:80]!r}", "after")
    shown = shown[at + 1:]
  page = shown[:int(limit)]
  return {
      "object": "list", "data": page, "first_id": page[0].get("id") if page else None,
      "last_id": page[-1].get("id") if page else None, "has_more": len(shown) > len(page)
  }
