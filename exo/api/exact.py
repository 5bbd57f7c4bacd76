"""Whether an answer is computed exactly, which is told in its header and beside the model's fingerprint."""

from __future__ import annotations

from contextvars import ContextVar

from aiohttp import web

from exo.config import ExactMode

HEADER = "X-Exo-Exact"
_told: ContextVar[bool | None] = ContextVar("exact", default=None)


def is_exact(mode: ExactMode, temperature: float, seed: int | None) -> bool:
  """Of a request with these settings: its tokens' bits depend on itself alone. What nobody can check, `seeded` computes in any company."""
  return mode == "all" or (mode == "seeded" and (temperature == 0 or seed is not None))


def tell_exact(exact: bool) -> bool:
  """The response that is prepared in this context says so. Returns what it was given."""
  _told.set(exact)
  return exact


async def add_exact(request: web.Request, response: web.StreamResponse) -> None:
  """Signal `on_response_prepare`."""
  if (exact := _told.get()) is not None:
    response.headers[HEADER] = "true" if exact else "false"
