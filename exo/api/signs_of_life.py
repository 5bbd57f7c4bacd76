"""What a stream says while it has nothing to say, so that its client, and whatever lies between, knows that it lives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from exo.errors import in_words
from exo.log import log

KEEP_ALIVE_S = 1.0
_SHORTEST_SLEEP_S = 0.05


@asynccontextmanager
async def signs_of_life(what: str, written_at: Callable[[], float],
                        sign: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
  """While the block runs, give a `sign` whenever the last thing was written a while ago; `what` is the stream's name in the log."""
  beating = asyncio.create_task(_beat(written_at, sign), name="keep-alive")
  try:
    yield
  finally:
    beating.cancel()
    outcome = (await asyncio.gather(beating, return_exceptions=True))[0]
    if isinstance(outcome, Exception) and not isinstance(outcome, ConnectionError):
      log(0, "%s: nothing kept its stream alive: %s", what, in_words(outcome))


async def _beat(written_at: Callable[[], float], sign: Callable[[], Awaitable[None]]) -> None:
  while True:
    await asyncio.sleep(max(_SHORTEST_SLEEP_S, written_at() + KEEP_ALIVE_S - time.monotonic()))
    if time.monotonic() - written_at() >= KEEP_ALIVE_S:
      await sign()
