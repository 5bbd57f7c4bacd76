"""Large pages for what llama.cpp holds, once it is there: weights are read from end to end for each token, which small pages make 5 % slower.
Asked for while weights are loaded they would make that slower instead, by seconds where the system has to find or clear them first.

`MADV_COLLAPSE` (Linux 6.1) puts one large page in the place of 512 that are in use, whatever the system's settings say.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_ANONYMOUS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0\s*$", re.MULTILINE)
_MADV_COLLAPSE = 25
_LARGE, _SMALL = 2 << 20, 4096
_IN_USE = 460  # of 512: the rest would be taken for nothing
_SOON_S, _BUSY_S = 1.0, 0.1


class LargePages:
  """Those of this process. They are made on a thread of its own: at once while nothing is computed, and little by little otherwise."""
  def __init__(self) -> None:
    self._wanted, self._busy = threading.Event(), 0
    self._thread: threading.Thread | None = None

  def want(self) -> None:
    """Weights have been loaded. Caches come and go, and asking for their sake disturbs steps more than it helps."""
    if sys.platform == "linux" and mmap.PAGESIZE == _SMALL and self._thread is None:
      self._thread = threading.Thread(target=self._run, name="exo-large-pages", daemon=True)
      self._thread.start()
    self._wanted.set()

  @contextmanager
  def computing(self) -> Iterator[None]:
    self._busy += 1
    try:
      yield
    finally:
      self._busy -= 1

  def _run(self) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    while self._wanted.wait():
      self._wanted.clear()
      time.sleep(_SOON_S)
      try:
        places = list(_in_use())
      except OSError:  # a system that does not show it
        return
      for at in places:
        if self._busy:
          time.sleep(_BUSY_S)
        # what has gone meanwhile, or cannot be, stays as it is
        if libc.madvise(at, _LARGE, _MADV_COLLAPSE) and ctypes.get_errno() == errno.EINVAL and not _is_known(libc):
          return


def _is_known(libc: ctypes.CDLL) -> bool:
  """Whether this system can do it at all: of nothing, too."""
  return not libc.madvise(0, 0, _MADV_COLLAPSE)


def _in_use() -> Iterator[int]:
  """Where large pages could begin in private memory that is no file's and nearly all in use."""
  with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
    for found in _ANONYMOUS.finditer(Path("/proc/self/maps").read_text()):
      start, end = -(-int(found[1], 16) // _LARGE), int(found[2], 16) // _LARGE
      for block in range(start, end):
        pages.seek(block * (_LARGE // _SMALL) * 8)
        each = np.frombuffer(pages.read(_LARGE // _SMALL * 8), np.uint64)
        if int((each >> np.uint64(63)).sum()) >= _IN_USE:
          yield block * _LARGE
