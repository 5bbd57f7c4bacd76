"""Ownership of background tasks: whoever starts one ends it, and no exception is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from exo.errors import in_words
from exo.log import log

T = TypeVar("T")


async def in_own_thread(work: Callable[[], T], timeout_s: float, late: Callable[[T], None] = lambda _: None) -> T:
  """What `work` returns or raises, for work that may stand still for good and must not take a place from other threads.

  Raises `TimeoutError`; what comes after that, or after a cancellation, is given to `late`.
  """
  loop = asyncio.get_running_loop()
  future: asyncio.Future[T] = loop.create_future()

  def deliver(error: BaseException | None, result: T) -> None:
    if future.done():
      if error is None:
        late(result)
    elif error is None:
      future.set_result(result)
    else:  # a future takes no StopIteration
      future.set_exception(RuntimeError(in_words(error)) if isinstance(error, StopIteration) else error)

  def run() -> None:
    error: BaseException | None = None
    result: Any = None
    try:
      result = work()
    except BaseException as raised:  # noqa: BLE001 - whatever it is, it is the caller's
      error = raised
    try:
      loop.call_soon_threadsafe(deliver, error, result)
    except RuntimeError:  # the loop has ended meanwhile
      if error is None and result is not None:
        late(result)

  threading.Thread(target=run, name="may stand still", daemon=True).start()
  async with asyncio.timeout(timeout_s):
    return await future


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
