"""What of a request's schemas its answer is not held to, which is told in a header of the answer and in the log."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aiohttp import web

from exo.log import log

HEADER = "X-Exo-Relaxed"
_MOST_TOLD, _LONGEST = 20, 160
_TOLD = web.RequestKey("relaxed", str)


def tell_relaxed(request: web.Request, relaxed: Sequence[str]) -> None:
  """The response to this request names these, each as "path keyword"."""
  if not relaxed:
    return
  names = [re.sub(r"[^\x20-\x2b\x2d-\x7e]", "?", name[:_LONGEST]) for name in relaxed[:_MOST_TOLD]]
  text = ", ".join([*names, "and more"] if len(relaxed) > _MOST_TOLD else names)
  log(1, "of the schemas of a request, this cannot be held to: %s", text)
  request[_TOLD] = text


async def add_relaxed(request: web.Request, response: web.StreamResponse) -> None:
  """Signal `on_response_prepare`."""
  if (text := request.get(_TOLD)):
    response.headers[HEADER] = text
