"""The memory that this process and its children really hold, and giving back what nobody uses of it."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from exo.errors import in_words
from exo.log import log
from exo.system_figures import note_unreadable, own_memory

_EVERY_S = 0.2
_SHARE = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def held_bytes(pid: int | None = None) -> int:
  """Of a process and all below it, this one by default: pages that several share are counted once, and those of mapped files as
  long as they are in memory. Of this process alone where the system tells no more, 0 where it tells nothing.
  """
  try:
    found = sum(map(_share, _family(os.getpid() if pid is None else pid)))
  except Exception as error:  # noqa: BLE001 - no load fails for a figure
    note_unreadable("the memory of this node's processes", error, "that of the node's own is shown instead")
    found = 0
  return found or (own_memory() if pid is None else 0)


def _share(pid: int) -> int:
  """What a process has of all pages: of one that n processes share, an n-th. 0 for one that is gone."""
  try:
    match = _SHARE.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
  except OSError:
    return 0
  return int(match[1]) * 1024 if match else 0


def _family(pid: int) -> Iterator[int]:
  yield pid
  own = _command(pid)
  try:
    children = [file.read_text().split() for file in Path(f"/proc/{pid}/task").glob("*/children")]
  except OSError:
    return
  for child in (int(number) for numbers in children for number in numbers):
    if _command(child) != own:  # until it runs a program of its own, a child's memory is its parent's
      yield from _family(child)


def _command(pid: int) -> bytes:
  """What a process runs; nothing for one that is gone."""
  file = Path(f"/proc/{pid}/cmdline")
  try:
    return file.read_bytes()
  except OSError:
    return b""


def give_back() -> None:
  """Hand what was freed back to the system, where the allocator keeps it for later otherwise."""
  if sys.platform == "linux":
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
      libc.malloc_trim(0)


class PeakWatch:
  """Looks at `held_bytes` all the time between entering and leaving; `peak` is the most that it saw, in bytes."""
  def __init__(self) -> None:
    self.peak = 0
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._look, name="memory", daemon=True)

  def __enter__(self) -> PeakWatch:
    self._thread.start()
    return self

  def __exit__(
      self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
  ) -> None:
    self._ended.set()
    self._thread.join()
    self.peak = max(self.peak, held_bytes())

  def _look(self) -> None:
    try:
      while not self._ended.is_set():
        self.peak = max(self.peak, held_bytes())
        self._ended.wait(_EVERY_S)
    except Exception as error:  # noqa: BLE001 - of a figure that is only shown
      log(1, "how much memory a load takes was not seen: %s", in_words(error))
