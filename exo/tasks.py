"""Ownership of background tasks: whoever starts one ends it, and no exception is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from exo.log import log


class TaskOwner:
  """Tasks of one object. `close` cancels what still runs and waits for it."""
  def __init__(self, name: str) -> None:
    self._name = name
    self._tasks: set[asyncio.Task[Any]] = set()

  def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
    task = asyncio.create_task(work, name=f"{self._name}: {name}")
    self._tasks.add(task)
    task.add_done_callback(self._finished)
    return task

  def _finished(self, task: asyncio.Task[Any]) -> None:
    self._tasks.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
      log(0, "%s failed: %s: %s", task.get_name(), type(error).__name__, error)

  def __len__(self) -> int:
    return len(self._tasks)

  async def close(self) -> None:
    current = asyncio.current_task()
    tasks = [task for task in self._tasks if task is not current]
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
