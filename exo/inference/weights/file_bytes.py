"""A file's bytes as arrays: mapped into memory where the file system can do that, else read when they are asked for."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from exo.errors import ModelFilesError
from exo.log import log

_MOST_HEADER_BYTES = 1 << 27


class FileBytes:
  """Close it when it is no longer needed. Arrays of it are read-only."""
  def __init__(self, path: Path) -> None:
    """Raises `ModelFilesError` for a file that cannot be read, or is empty."""
    self._path = path
    self._read: dict[tuple[int, int], npt.NDArray[np.uint8]] = {}
    self._descriptor = -1
    try:
      self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
      self.size = os.fstat(self._descriptor).st_size
    except OSError as error:
      raise ModelFilesError(f"{path.name} cannot be read: {error}") from error
    if not self.size:
      self.close()
      raise ModelFilesError(f"{path.name} cannot be read: it is empty")
    self._mmap: mmap.mmap | None = None
    self._map = self._mapped()
    if self._map is not None:
      os.close(self._descriptor)
      self._descriptor = -1

  def _mapped(self) -> npt.NDArray[np.uint8] | None:
    """As a plain array: slicing numpy's memmap class costs 50 µs, which every embedding lookup would pay."""
    for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):  # some have the second alone
      try:
        self._mmap = mmap.mmap(self._descriptor, self.size, flags=flags, prot=mmap.PROT_READ)
        return np.frombuffer(self._mmap, np.uint8)
      except OSError as error:
        why = error.strerror
    log(1, "%s cannot be mapped (%s): what is used of it is read, and takes memory", self._path.name, why)
    return None

  def head(self) -> memoryview:
    """The file from its beginning, or so much of it that any header is in it."""
    if self._map is not None:
      return memoryview(self._map)
    return memoryview(self._pread(0, min(self.size, _MOST_HEADER_BYTES)))

  def span(self, start: int, end: int) -> npt.NDArray[np.uint8]:
    """Bytes [start, end), which must lie within the file. What was read stays in memory until `close`.

    Raises `ModelFilesError` when the file cannot be read any more.
    """
    if self._map is not None:
      return self._map[start:end]
    if (start, end) not in self._read:
      self._read[start, end] = np.frombuffer(self._pread(start, end), np.uint8)
    return self._read[start, end]

  def let_go(self) -> None:
    """Hold nothing in this process's memory of what has been read. The system keeps it as long as it likes, and arrays that were
    given out are read from there, or from the file, when they are used again.
    """
    if self._mmap is not None and hasattr(mmap, "MADV_DONTNEED"):
      with contextlib.suppress(OSError):  # what a file system does not know of its maps costs memory alone
        self._mmap.madvise(mmap.MADV_DONTNEED)
    self._read.clear()

  def _pread(self, start: int, end: int) -> bytes:
    pieces, at = [], start
    try:
      while at < end and (piece := os.pread(self._descriptor, min(end - at, 1 << 26), at)):
        pieces.append(piece)
        at += len(piece)
    except OSError as error:
      raise ModelFilesError(f"{self._path.name} cannot be read: {error}") from error
    if at < end:
      raise ModelFilesError(f"{self._path.name} is cut off at byte {at}")
    return b"".join(pieces)

  def __del__(self) -> None:
    self.close()

  def close(self) -> None:
    """Arrays that were given out stay as they are."""
    self._map = self._mmap = None
    self._read.clear()
    if self._descriptor >= 0:
      os.close(self._descriptor)
      self._descriptor = -1
