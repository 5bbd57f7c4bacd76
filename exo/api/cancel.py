"""POST /v1/cancel/{id}: end a running request of this node."""

from __future__ import annotations

from aiohttp import web

from exo.api.caller import caller
from exo.api.errors import json_response
from exo.errors import RequestNotFoundError
from exo.orchestration.node import Node


async def cancel(request: web.Request, node: Node) -> web.Response:
  """`id` is the one that the answer or its first chunk bears; whoever reads that answer is told that it was cancelled."""
  request_id = request.match_info["id"]
  who = caller()
  if not node.desk.cancel(request_id, None if who.is_admin else who.label):  # to others it is as if there were none
    raise RequestNotFoundError(f"no request {request_id[:80]!r} is running on this node: it is over, or another node's")
  return json_response({"id": request_id, "object": "request", "cancelled": True})
