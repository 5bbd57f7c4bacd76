"""Server-sent events: a streamed response that begins at once and never falls silent."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from exo.api.errors import describe, streamed
from exo.api.signs_of_life import signs_of_life

_ENCODER = msgspec.json.Encoder()


class EventStream:
  """Writes `data:` lines. Not for concurrent use."""
  def __init__(self, response: web.StreamResponse, ping: Any = None) -> None:
    self._response, self._ping = response, ping
    self._held: list[bytes] = []
    self.written_at = time.monotonic()

  async def send(self, value: Any, *, event: str = "", more: bool = False) -> None:
    """Write an event, named where `event` is given; with `more` to come at once, it waits to share the next one's packet."""
    name = f"event: {event}\n".encode() if event else b""
    self._held.append(name + b"data: " + _ENCODER.encode(value) + b"\n\n")
    if not more:
      await self.flush()

  async def flush(self) -> None:
    """Write what waits for company."""
    if self._held:
      await self._write(b"")

  async def comment(self, text: str) -> None:
    await self._write(f": {text}\n\n".encode())

  async def pass_on(self, data: bytes) -> None:
    """Write events that are whole already."""
    await self._write(data)

  async def done(self) -> None:
    await self._write(b"data: [DONE]\n\n")

  async def _write(self, data: bytes) -> None:
    self.written_at = time.monotonic()
    self._held.append(data)
    data = b"".join(self._held)
    self._held.clear()
    await self._response.write(data)

  async def sign(self) -> None:
    """A comment, or the event `ping`: the stream lives."""
    await (self.comment("keep-alive") if self._ping is None else self.send(self._ping, event=self._ping["type"]))


@asynccontextmanager
async def event_stream(
    request: web.Request,
    *,
    done: bool = True,
    failed: Callable[[EventStream, Exception], Awaitable[None]] | None = None,
    ping: Any = None
) -> AsyncIterator[tuple[EventStream, web.StreamResponse]]:
  """Begin a streamed response; an error inside becomes its last event, and with `done`, `[DONE]` always ends it.

  `failed` writes that event where the route has a form of its own, and `ping` is its sign of life.
  """
  response = web.StreamResponse(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
  response.content_type = "text/event-stream"
  stream = EventStream(response, ping)

  async def end(error: Exception | None) -> None:
    if error is not None and failed is not None:
      await failed(stream, error)
    elif error is not None:
      await stream.send(describe(error)[1])
    if done:
      await stream.done()

  async with streamed(request, response, end):
    async with signs_of_life(f"{request.method} {request.path}", lambda: stream.written_at, stream.sign):
      yield stream, response
