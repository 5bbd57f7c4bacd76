"""Threads for what downloads do with disks and hubs, which may take long: nobody else's work waits for one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

_THREADS = 8


@cache
def _pool() -> ThreadPoolExecutor:
  return ThreadPoolExecutor(_THREADS, "download")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
  """As `asyncio.to_thread`, whose few threads all of the program shares."""
  return await asyncio.get_running_loop().run_in_executor(_pool(), partial(function, *args, **kwargs))
