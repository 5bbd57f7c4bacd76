"""Answers of one JSON object a line, as Ollama's clients read them, with signs of life and errors among them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from aiohttp import web

from exo.api.errors import describe, ollama_form, streamed
from exo.api.sse import KEEP_ALIVE_S
from exo.log import log

Pieces = AsyncIterator[dict[str, Any]]


async def ndjson(
    request: web.Request, pieces: Pieces, idle: Callable[[], dict[str, Any]] | None = None
) -> web.StreamResponse:
  """Send the pieces as they come; `idle` makes the one that is sent whenever none has come for a while."""
  response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
  response.content_type = "application/x-ndjson"
  turn = asyncio.Lock()

  async def write(piece: dict[str, Any]) -> None:
    async with turn:
      await response.write(msgspec.json.encode(piece) + b"\n")

  async def end(error: Exception | None) -> None:
    if error is not None:
      await write(ollama_form(describe(error)[1]))

  async with streamed(request, response, end):
    beat = _Beat(write, idle)
    try:
      async for piece in pieces:
        beat.put_off()
        await write(piece)
    finally:
      await beat.stop()
  return response


class _Beat:
  """Writes what says that the node lives, until it is stopped."""
  def __init__(self, write: Callable[[dict[str, Any]], Any], idle: Callable[[], dict[str, Any]] | None) -> None:
    self._write, self._idle = write, idle
    self._loop = asyncio.get_running_loop()
    self._last = self._loop.time()
    self._task = asyncio.create_task(self._run(), name="ndjson keep-alive") if idle is not None else None

  def put_off(self) -> None:
    self._last = self._loop.time()

  async def stop(self) -> None:
    if self._task is not None:
      self._task.cancel()
      outcome = (await asyncio.gather(self._task, return_exceptions=True))[0]
      if isinstance(outcome, Exception) and not isinstance(outcome, ConnectionError):
        log(0, "nothing kept a stream alive: %s", outcome)

  async def _run(self) -> None:
    assert self._idle is not None
    while True:
      await asyncio.sleep(max(0.05, self._last + KEEP_ALIVE_S - self._loop.time()))
      if self._loop.time() - self._last >= KEEP_ALIVE_S:
        self.put_off()
        await self._write(self._idle())
