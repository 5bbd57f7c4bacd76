"""Waiting until nobody wants a device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_POLL_S = 1.0


async def quiet(busy: Callable[[], bool], for_s: float) -> None:
  """Until nobody has been `busy` for so long."""
  loop = asyncio.get_running_loop()
  since = loop.time()
  while loop.time() - since < for_s:
    await asyncio.sleep(min(_POLL_S, for_s))
    if busy():
      since = loop.time()
