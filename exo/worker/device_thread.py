"""The one thread that owns a compute device. Everything an engine does there happens on it, one call after another."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from exo.errors import EngineError, in_words
from exo.log import log

P = ParamSpec("P")
T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]
_Job = tuple[Callable[[], Any], Done, asyncio.AbstractEventLoop]


def _deliver(done: Done, result: Any, failure: BaseException | None) -> None:
  """On the event loop. Who cannot take a result is told so, since somebody waits for either."""
  try:
    done(result, failure)
  except Exception as error:  # noqa: BLE001 - nobody above would hear of it
    log(0, "a result of the device thread could not be taken: %s", in_words(error))
    if failure is None:
      done(None, error)


class DeviceThread:
  """Runs functions in order of submission. The thread starts with the first of them.

  `submit` costs two hand-overs and nothing else, since it is paid for every token; `run` is for everything else.
  """
  def __init__(self) -> None:
    self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
    self._thread: threading.Thread | None = None

  def submit(self, function: Callable[[], Any], done: Done) -> None:
    """Call `function()` there and then `done(result, None)` or `done(None, error)` on the calling event loop."""
    if self._thread is None or not self._thread.is_alive():
      self._thread = threading.Thread(target=self._work, name="exo-device", daemon=True)
      self._thread.start()
    self._jobs.put((function, done, asyncio.get_running_loop()))

  async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await `function(*args)` on the device thread. Cancelling does not interrupt a call that has begun."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def done(result: T, error: BaseException | None) -> None:
      if future.done():
        return
      if error is not None:
        # SystemExit, say, would end the event loop, and a future takes no StopIteration
        if not isinstance(error, Exception) or isinstance(error, StopIteration):
          error = EngineError(in_words(error))
        future.set_exception(error)
      else:
        future.set_result(result)

    self.submit(lambda: function(*args, **kwargs), done)
    return await future

  def _work(self) -> None:
    while (job := self._jobs.get()) is not None:
      function, done, loop = job
      result, failure = None, None
      try:
        result = function()
      except BaseException as error:  # noqa: BLE001 - it is the submitter's, whatever it is
        failure = error
      try:
        loop.call_soon_threadsafe(_deliver, done, result, failure)
      except RuntimeError:  # the loop is closed: nobody waits any more
        return
      del function, done, result, failure, job

  def close(self) -> None:
    """End the thread after what was submitted. Blocks."""
    if self._thread is not None:
      self._jobs.put(None)
      self._thread.join()
      self._thread = None
