"""A lock file against other processes; the system frees it when a process dies."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

_POLL_S = 0.1


@asynccontextmanager
async def locked(path: Path, waiting: Callable[[], None]) -> AsyncIterator[None]:
  """Hold the lock; `waiting` is called once when somebody else has it. Tasks of one process exclude each other too."""
  told = False
  while True:
    with path.open("w") as file:
      while True:
        try:
          fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
          break
        except BlockingIOError:
          if not told:
            waiting()
            told = True
          await asyncio.sleep(_POLL_S)
      # whoever held it may have deleted the file
      if _is_still(path, file.fileno()):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)


def _is_still(path: Path, descriptor: int) -> bool:
  try:
    return os.path.samestat(path.stat(), os.fstat(descriptor))
  except OSError:
    return False
