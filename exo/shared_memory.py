"""Memory that a node shares with a process of its own: nameless, so that nothing of it stays whatever ends them."""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import suppress

import numpy as np
import numpy.typing as npt


class SharedMemory:
  """`descriptor` is what the other process is given at its start, as the same number. It grows, and never shrinks."""
  def __init__(self, descriptor: int | None = None) -> None:
    self.descriptor = _nameless() if descriptor is None else descriptor
    self._map: mmap.mmap | None = None

  def grow(self, n_bytes: int) -> None:
    """Let there be at least so many bytes; what was there stays. By the one who made it. Raises `OSError`, `MemoryError`."""
    if n_bytes > os.fstat(self.descriptor).st_size:
      os.ftruncate(self.descriptor, -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)

  def view(self, start: int, n_bytes: int) -> npt.NDArray[np.uint8]:
    """Bytes [start, start + n_bytes), which both sides see."""
    if self._map is None or len(self._map) < start + n_bytes:
      self._map = mmap.mmap(self.descriptor, os.fstat(self.descriptor).st_size)  # views of the old one keep it
    return np.frombuffer(self._map, np.uint8, n_bytes, start)

  def give_back(self, n_bytes: int) -> None:
    """Keep no more than so many bytes of memory, where the system can do that; beyond are zeros when it is next looked at."""
    size = os.fstat(self.descriptor).st_size
    start = -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    if size > start and hasattr(mmap, "MADV_REMOVE"):
      self.view(0, size)
      assert self._map is not None
      with suppress(OSError):  # of a file system that cannot
        self._map.madvise(mmap.MADV_REMOVE, start, size - start)

  def close(self) -> None:
    self._map = None
    if self.descriptor >= 0:
      os.close(self.descriptor)
      self.descriptor = -1


def _nameless() -> int:
  if hasattr(os, "memfd_create"):
    return os.memfd_create("exo", os.MFD_CLOEXEC)
  descriptor, path = tempfile.mkstemp(prefix="exo-")
  os.unlink(path)  # noqa: PTH108 - by the name that was just made
  return descriptor
