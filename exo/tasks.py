"""Ownership of background tasks: whoever starts one ends it, and no exception is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from exo.errors import in_words
from exo.log import log


class TaskOwner:
  """Tasks of one object. `close` cancels what still runs and waits for it."""
  def __init__(self, name: str) -> None:
    self._name = name
    self._tasks: set[asyncio.Task[Any]] = set()

  def spawn(self,
            work: Coroutine[Any, Any, Any],
            name: str,
            failed: Callable[[BaseException], None] | None = None) -> asyncio.Task[Any]:
    """`failed` is called with what ended it, if that was neither its own end nor a cancellation."""
    task = asyncio.create_task(work, name=f"{self._name}: {name}")
    self._tasks.add(task)
    if failed is not None:
      task.add_done_callback(partial(_tell, failed))
    task.add_done_callback(self._finished)
    return task

  def _finished(self, task: asyncio.Task[Any]) -> None:
    self._tasks.discard(task)
    _tell(lambda error: log(0, "%s failed: %s", task.get_name(), in_words(error)), task)

  def __len__(self) -> int:
    return len(self._tasks)

  async def close(self) -> None:
    current = asyncio.current_task()
    tasks = [task for task in self._tasks if task is not current]
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _tell(failed: Callable[[BaseException], None], task: asyncio.Task[Any]) -> None:
  if not task.cancelled() and (error := task.exception()) is not None:
    failed(error)


def log_lost_errors(loop: asyncio.AbstractEventLoop) -> None:
  """Have what callbacks of the loop raise, and tasks that nobody owns, in this program's own log."""
  def lost(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    log(0, "%s%s", context.get("message"), "" if error is None else f": {in_words(error)}")

  loop.set_exception_handler(lost)
