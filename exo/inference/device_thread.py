"""The one thread that owns the compute device. Everything an engine does happens here, one call after another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DeviceThread:
  """Runs functions in order of submission. `close` waits for the one that runs and drops those that wait."""
  def __init__(self) -> None:
    self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="exo-device")

  async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await `function(*args)` on the device thread. Cancelling does not interrupt a call that has begun."""
    loop = asyncio.get_running_loop()
    if kwargs:
      return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))
    return await loop.run_in_executor(self._executor, function, *args)

  def close(self) -> None:
    self._executor.shutdown(wait=True, cancel_futures=True)
