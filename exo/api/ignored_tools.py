"""Tools that only a hosted service runs are left out of what the model sees, which is told in a header of the answer and in the log."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aiohttp import web

from exo.log import log

HEADER = "X-Exo-Ignored-Tools"
_MOST_TOLD, _LONGEST = 20, 64
_TOLD = web.RequestKey("ignored tools", str)


def tell_ignored(request: web.Request, kinds: Sequence[str]) -> None:
  """The response to this request names these kinds of tools."""
  if not kinds:
    return
  names = [re.sub(r"[^\x21-\x2b\x2d-\x7e]", "?", kind[:_LONGEST]) for kind in kinds[:_MOST_TOLD]]
  text = ", ".join([*names, "and more"] if len(kinds) > _MOST_TOLD else names)
  log(1, "tools of these kinds are not run here, and the model is not told of them: %s", text)
  request[_TOLD] = text


async def add_ignored_tools(request: web.Request, response: web.StreamResponse) -> None:
  """Signal `on_response_prepare`."""
  if (text := request.get(_TOLD)):
    response.headers[HEADER] = text
