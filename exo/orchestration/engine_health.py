"""What a node does about an engine that failed: try it, and if it is broken leave the ring until a new one works."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from exo.log import log, say

_CHECK_S = 60.0  # for a step of two tokens
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 300.0

Act = Callable[[], Awaitable[None]]


class EngineHealth:
  """`problem` is why the engine is doubted, None while it is not; `broken` means that it failed again when it was tried."""
  def __init__(self, node_id: str) -> None:
    self._node_id = node_id
    self.problem: str | None = None
    self.broken = False

  async def mend(self, check: Act, leave: Act, renew: Act) -> None:
    """Returns once the engine works. `check` and `renew` raise while it does not; `leave` takes the node out of its plans."""
    if (failure := await self._try(check)) is None:
      log(1, "the engine of %s works again", self._node_id)
      self.problem = None
      return
    self.broken, self.problem = True, f"the engine is broken: {failure}"
    say(f"{self._node_id} leaves the ring, its engine is broken: {failure}")
    await leave()
    pause_s = _FIRST_PAUSE_S
    while True:
      await asyncio.sleep(pause_s)
      if (failure := await self._try(renew)) is None:
        break
      log(1, "the engine of %s is still broken: %s", self._node_id, failure)
      pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    self.broken, self.problem = False, None
    say(f"{self._node_id} is back in the ring: its engine works again")

  @staticmethod
  async def _try(act: Act) -> str | None:
    """What went wrong, None if nothing did."""
    try:
      async with asyncio.timeout(_CHECK_S):
        await act()
    except TimeoutError:
      return f"it has not come back within {_CHECK_S:g} s"
    except Exception as error:  # noqa: BLE001 - an engine may raise anything; that is the answer
      return f"{type(error).__name__}: {error}"
    return None
