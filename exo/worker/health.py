"""Whether a worker's device can compute at all: proved by a small computation of its own, apart from anybody's model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from exo.errors import in_words
from exo.log import log, say
from exo.tasks import TaskOwner

_PROOF_S = 60.0  # a few tokens of a tiny model, or a step of what is done before it
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 300.0

Act = Callable[[], Awaitable[None]]


class WorkerHealth:
  """`problem` is why the worker cannot compute, None while it can. `label` is what people call it.

  `prove` computes something that is nobody's and raises where that fails, `renew` makes a new engine and proves it.
  """
  def __init__(self, label: str, prove: Act, renew: Act, progress: Callable[[], object]) -> None:
    """`progress` gives something else whenever what the worker is busy with, and a proof waits for, has come further."""
    self._label, self._prove, self._renew, self._progress = label, prove, renew, progress
    self._leave: Act | None = None
    self._tasks = TaskOwner(f"health of {label}")
    self._doubted = False
    self._failed_loads: set[str] = set()  # by fingerprint, since the last load that succeeded
    self.problem: str | None = None

  @property
  def broken(self) -> bool:
    return self.problem is not None

  @property
  def doubted(self) -> bool:
    """It is looked whether the worker computes, or it does not."""
    return self._doubted

  def on_broken(self, leave: Act) -> None:
    """`leave` takes the worker out of all plans."""
    self._leave = leave

  async def close(self) -> None:
    """Look no more."""
    await self._tasks.close()

  def loaded(self) -> None:
    """A shard was loaded: the worker can."""
    self._failed_loads.clear()

  def load_failed(self, fingerprint: str) -> None:
    """One model's failure is that model's; when several fail in a row, the worker may be why."""
    self._failed_loads.add(fingerprint)
    if len(self._failed_loads) > 1:
      self._failed_loads.clear()
      self.doubt()

  def doubt(self) -> None:
    """Find out in the background whether the worker still computes, and mend it if it does not."""
    if not self._doubted:
      self._doubted = True
      self._tasks.spawn(self._examine(), "examine the worker")

  async def _examine(self) -> None:
    try:
      if (failure := await self._try(self._prove)) is None:
        log(1, "the worker of %s computes as it should", self._label)
        return
      self.problem = f"the engine is broken: {failure}"
      say(f"{self._label} leaves the ring, its engine is broken: {failure}")
      if self._leave is not None:
        await self._try(self._leave)
      pause_s = _FIRST_PAUSE_S
      while True:
        await asyncio.sleep(pause_s)
        if (failure := await self._try(self._renew)) is None:
          break
        log(1, "the engine of %s is still broken: %s", self._label, failure)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
      self.problem = None
      say(f"{self._label} is back in the ring: its engine works again")
    finally:
      self._doubted = False

  async def _try(self, act: Act) -> str | None:
    """What went wrong, None if nothing did. A long load that goes on is nothing wrong, however long `act` waits for it."""
    task = asyncio.create_task(_outcome(act))
    try:
      seen = self._progress()
      while not (await asyncio.wait({task}, timeout=_PROOF_S))[0]:
        if (now := self._progress()) == seen:
          return f"it has not come back within {_PROOF_S:g} s"
        seen = now
      return task.result()
    finally:
      task.cancel()


async def _outcome(act: Act) -> str | None:
  try:
    await act()
  except asyncio.CancelledError:
    raise
  except BaseException as error:  # noqa: BLE001 - an engine may raise anything, SystemExit too; that is the answer
    return in_words(error)
  return None
