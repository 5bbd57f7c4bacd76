"""What of a request was left out, told in headers of its answer and in the log: tools that nobody here runs, parts of schemas."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aiohttp import web

from exo.log import log

IGNORED_TOOLS, RELAXED = "X-Exo-Ignored-Tools", "X-Exo-Relaxed"
_MOST_TOLD, _LONGEST = 20, 160
_UNWRITTEN = re.compile(r"[^\x20-\x2b\x2d-\x7e]")  # in a list that is parted by commas
_TOLD = web.RequestKey("told", dict[str, str])


def tell_ignored(request: web.Request, kinds: Sequence[str]) -> None:
  """The response to this request names these kinds of tools, which the model is not told of."""
  _tell(request, IGNORED_TOOLS, kinds, "tools of these kinds are not run here, and the model is not told of them")


def tell_relaxed(request: web.Request, relaxed: Sequence[str]) -> None:
  """The response to this request names what of its schemas the answer is not held to, each as "path keyword"."""
  _tell(request, RELAXED, relaxed, "of the schemas of a request, this cannot be held to")


def _tell(request: web.Request, header: str, names: Sequence[str], what: str) -> None:
  if names:
    written = [_UNWRITTEN.sub("?", name[:_LONGEST]) for name in names[:_MOST_TOLD]]
    text = ", ".join([*written, "and more"] if len(names) > _MOST_TOLD else written)
    log(1, "%s: %s", what, text)
    request[_TOLD] = request.get(_TOLD, {}) | {header: text}


async def add_told(request: web.Request, response: web.StreamResponse) -> None:
  """Signal `on_response_prepare`."""
  response.headers.update(request.get(_TOLD, {}))
