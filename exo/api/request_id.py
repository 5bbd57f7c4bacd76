"""An id for every HTTP request: the client's own or a new one, in the answer's `x-request-id` and in every log line."""

from __future__ import annotations

import re
import uuid

from aiohttp import web
from aiohttp.typedefs import Middleware

from exo import log
from exo.api.handlers import Handler
from exo.orchestration.meter import Meter

HEADER = "X-Request-Id"
_OWN = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")


@web.middleware
async def request_id_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
  """To stand before all others, so that their log lines bear the id too."""
  given = request.headers.get(HEADER, "")
  # not reset: the signal below still reads it, and every request has a context or a value of its own
  log.request_id.set(given if _OWN.fullmatch(given) else f"req-{uuid.uuid4().hex}")
  return await handler(request)


async def add_request_id(request: web.Request, response: web.StreamResponse) -> None:
  """Signal `on_response_prepare`, which also runs for streamed responses."""
  if (request_id := log.request_id.get()):
    response.headers.setdefault(HEADER, request_id)


def count_requests(meter: Meter) -> Middleware:
  """A middleware that counts requests by the route's pattern, never by path, so that strangers cannot make up labels."""
  @web.middleware
  async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    status = 499  # the client left before the answer
    try:
      response = await handler(request)
      status = response.status
      return response
    except web.HTTPException as error:
      status = error.status
      raise
    finally:
      resource = request.match_info.route.resource
      route = resource.canonical if resource is not None else "none"
      meter.http_requests[route, request.method if route != "none" else "any", str(status)] += 1

  return middleware
