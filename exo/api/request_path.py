"""The route that a path means, however its client put a base address and a route together."""

from __future__ import annotations

import re

_SLASHES = re.compile(r"/{2,}")
# what clients put before a route: OpenAI's version once more, that of other services, or OpenAI's before Ollama's routes
_PREFIXES = (("/v1/v1/", "/v1/"), ("/api/v1/", "/v1/"), ("/openai/v1/", "/v1/"), ("/v1/api/", "/api/"))


def usual_path(target: str) -> str:
  """A request's target (path and query) as the routes here are written: single slashes, none at the end, one version."""
  if target.startswith("/"):
    path, mark, query = target.partition("?")
    path = _SLASHES.sub("/", path)
    for prefix, usual in _PREFIXES:
      while path.startswith(prefix):
        path = usual + path[len(prefix):]
    return (path.rstrip("/") or "/") + mark + query
  return target
