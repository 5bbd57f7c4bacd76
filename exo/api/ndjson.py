"""Answers of one JSON object a line, as Ollama's clients read them, with signs of life and errors among them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from typing import Any

import msgspec
from aiohttp import web

from exo.api.errors import describe, ollama_form, streamed
from exo.api.signs_of_life import signs_of_life

Pieces = AsyncIterator[dict[str, Any]]


async def ndjson(
    request: web.Request, pieces: Pieces, idle: Callable[[], dict[str, Any]] | None = None
) -> web.StreamResponse:
  """Send the pieces as they come; `idle` makes the one that is sent whenever none has come for a while."""
  response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
  response.content_type = "application/x-ndjson"
  turn, written_at = asyncio.Lock(), time.monotonic()

  async def write(piece: dict[str, Any]) -> None:
    nonlocal written_at
    written_at = time.monotonic()
    async with turn:
      await response.write(msgspec.json.encode(piece) + b"\n")

  async def end(error: Exception | None) -> None:
    if error is not None:
      await write(ollama_form(describe(error)[1]))

  what = f"{request.method} {request.path}"
  beat = nullcontext() if idle is None else signs_of_life(what, lambda: written_at, lambda: write(idle()))
  async with streamed(request, response, end), beat:
    async for piece in pieces:
      await write(piece)
  return response
