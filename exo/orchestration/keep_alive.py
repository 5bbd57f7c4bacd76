"""Models that clients want unloaded: at once, or when nobody has used them for a while."""

from __future__ import annotations

import asyncio
import time

from exo.errors import ModelInUseError
from exo.orchestration.plan_host import PlanHost
from exo.tasks import TaskOwner

_AGAIN_S = 0.05  # between two looks at a model that is in use
_LEAVES_S = 1.0  # for what was just answered to leave the ring
_MOST_SLEEP_S = 30.0
_MOST_MODELS = 64


class KeepAlive:
  """Of one node, and of what is loaded with a part on it. What was said of a model last counts; models that are kept (`--keep`) stay."""
  def __init__(self, plans: PlanHost, tasks: TaskOwner) -> None:
    self._plans, self._tasks = plans, tasks
    self._after_s: dict[str, float] = {}
    self._watching: dict[str, asyncio.Task[None]] = {}

  def left_s(self, model_id: str) -> float | None:
    """In how many seconds a model will be unloaded if nobody uses it; None where it is not."""
    after_s, used_at = self._after_s.get(model_id), self._plans.residents.used_at(model_id)
    return None if after_s is None or used_at is None else max(0.0, used_at + after_s - time.monotonic())

  async def keep(self, model_id: str, after_s: float | None) -> None:
    """Unload a model once it was not used for so long; None: it stays until its room is needed. At once is waited for, but not until
    others' requests have ended."""
    if (watching := self._watching.pop(model_id, None)) is not None:
      watching.cancel()
    self._after_s.pop(model_id, None)
    if after_s is None or model_id in self._plans.residents.kept or len(self._watching) >= _MOST_MODELS:
      return
    self._after_s[model_id] = after_s
    self._watching[model_id] = self._tasks.spawn(self._watch(model_id, after_s), f"keep {model_id} for {after_s:g} s")
    if after_s == 0:
      await asyncio.wait({self._watching[model_id]}, timeout=_LEAVES_S)

  async def _watch(self, model_id: str, after_s: float) -> None:
    try:
      while (used_at := self._plans.residents.used_at(model_id)) is not None:
        left_s = used_at + after_s - time.monotonic()
        if left_s > 0:
          await asyncio.sleep(min(left_s, _MOST_SLEEP_S))
          continue
        try:
          await self._plans.close_model(model_id, "was not to be kept loaded")
        except ModelInUseError:
          await asyncio.sleep(_AGAIN_S)
    finally:
      if self._watching.get(model_id) is asyncio.current_task():
        del self._watching[model_id], self._after_s[model_id]
