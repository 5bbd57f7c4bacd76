"""Names looked up off the event loop, and once for all who ask at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from exo.download.model_library import ModelEntry
from exo.errors import DownloadError
from exo.oldest import forget_oldest

# A change by somebody else is seen at the first request that comes so long after the last look. It is what a person
# needs between replacing a file and asking, and a request in a hundred of a busy node pays for the look.
_BELIEVED_S = 1.0
_PATIENCE_S, _GIVE_UP_S = 0.5, 30.0  # with a disk that is slow, where an answer is known, and where none is
_MOST_KNOWN = 1024
_THREADS = 4


@dataclass(frozen=True, slots=True)
class _Known:
  entry: ModelEntry
  at: float


class ModelIndex:
  """`find` blocks on the disk and raises `ModelNotFoundError`. Own changes are told by `forget`; those of others are
  noticed by a look, which costs some calls of `stat`.

  Looks have threads of their own, so that no download's work on the disk is waited for.
  """
  def __init__(self, find: Callable[[str], ModelEntry]) -> None:
    self._find = find
    self._known: dict[str, _Known] = {}
    self._looks: dict[str, asyncio.Task[ModelEntry]] = {}
    self._threads: ThreadPoolExecutor | None = None

  async def find(self, name: str) -> ModelEntry:
    """Raises `DownloadError` where the disk does not answer, and `ModelNotFoundError`, which is never remembered: whoever puts
    a model there may ask for it at once.
    """
    known = self._known.get(name)
    if known is not None and time.monotonic() - known.at < _BELIEVED_S:
      return known.entry
    look = self._looks.get(name)
    if look is None:
      look = self._looks[name] = asyncio.create_task(self._look(name), name=f"look up {name[:80]}")
      look.add_done_callback(partial(self._looked, name))
    await asyncio.wait({look}, timeout=_GIVE_UP_S if known is None else _PATIENCE_S)
    if look.done():
      return await asyncio.shield(look)
    if known is None:
      raise DownloadError(f"{name[:80]} could not be looked up in {_GIVE_UP_S:g} s: a disk with models does not answer")
    return known.entry

  async def _look(self, name: str) -> ModelEntry:
    if self._threads is None:
      self._threads = ThreadPoolExecutor(_THREADS, "models")
    at = time.monotonic()
    entry = await asyncio.get_running_loop().run_in_executor(self._threads, self._find, name)
    if self._looks.get(name) is asyncio.current_task():  # nothing was forgotten meanwhile
      self._known.pop(name, None)
      self._known[name] = _Known(entry, at)
      forget_oldest(self._known, _MOST_KNOWN)
    return entry

  def _looked(self, name: str, look: asyncio.Task[ModelEntry]) -> None:
    if self._looks.get(name) is look:
      del self._looks[name]
    if not look.cancelled() and look.exception() is not None:
      self._known.pop(name, None)

  def forget(self, name: str) -> None:
    """What lies on disk under this name has changed."""
    self._known.pop(name, None)
    self._looks.pop(name, None)

  def close(self) -> None:
    for look in list(self._looks.values()):
      look.cancel()
    if self._threads is not None:
      self._threads.shutdown(wait=False, cancel_futures=True)
      self._threads = None
