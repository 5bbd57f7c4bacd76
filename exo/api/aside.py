"""Work that grows with what a client sent: off the event loop, and what is large one after another, giving way to the rest."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import ParamSpec, TypeVar

from exo.errors import QueueFullError

LARGE = 64 * 1024  # bytes or characters from which on a text is large: tokenizing fewer takes some 20 ms
FEW_TOKENS = 64  # whose log probabilities are described where they come
TOKEN_SIZE = 8  # characters that one of more counts as
MAX_WAITING = 32
_NICE = 10
_RETRY_S = 5

P = ParamSpec("P")
T = TypeVar("T")


class _Large:
  """One thread for everything large: each holds the interpreter for moments only, and two would hold it in turn."""
  def __init__(self) -> None:
    self.pool = ThreadPoolExecutor(1, "exo-large", initializer=_give_way)
    self.waiting = 0


@lru_cache(maxsize=1)
def _large() -> _Large:
  return _Large()


def _give_way() -> None:
  """Let every other thread go first where the system counts threads by themselves."""
  if sys.platform == "linux":
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


async def aside(size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
  """`function(*args)` on another thread; `size` is how much a client sent for it, in bytes or characters.

  Raises what it raises, and `QueueFullError` when too much that is large waits already. What has begun is not interrupted,
  hence must be bounded by itself.
  """
  call = functools.partial(function, *args, **kwargs)
  if size < LARGE:
    return await asyncio.to_thread(call)
  large = _large()
  if large.waiting >= MAX_WAITING:
    raise QueueFullError(f"{large.waiting} large requests are being read already", retry_after_s=_RETRY_S)
  large.waiting += 1
  try:
    return await asyncio.get_running_loop().run_in_executor(large.pool, call)
  finally:
    large.waiting -= 1
