"""A file's own hash, computed while the file arrives, so that verifying a whole file does not read it all again."""

from __future__ import annotations

import hashlib
import os
import threading

from exo.download.manifest import RepoFile
from exo.inference.weights.block_map import BlockMap

_READ_BYTES = 1 << 22
_MOST_AT_ONCE = 1 << 26  # of what lies there from before, so that no single write waits long


class WholeHash:
  """Follows a file's blocks as far as they are there without a gap. Thread-safe; all methods but `reset` block."""
  def __init__(self, descriptor: int, file: RepoFile) -> None:
    self._descriptor, self._file = descriptor, file
    self._lock = threading.Lock()
    self.reset()

  def reset(self) -> None:
    """Begin again: bytes that were hashed have changed."""
    self._at = 0
    self._digest = hashlib.sha256() if self._file.sha256 is not None else hashlib.sha1(usedforsecurity=False)
    if self._file.sha256 is None:  # as git names a file
      self._digest.update(b"blob %d\0" % self._file.size)

  @property
  def _expected(self) -> str | None:
    return self._file.sha256 if self._file.sha256 is not None else self._file.git_oid

  def follow(self, present: BlockMap) -> None:
    """Hash some of what has come; returns at once while another thread does. Raises `OSError`."""
    if self._expected is None or not self._lock.acquire(blocking=False):
      return
    try:
      self._advance(min(self._first_gap(present), self._at + _MOST_AT_ONCE))
    finally:
      self._lock.release()

  def matches(self) -> bool:
    """Whether the whole file, all of which is there, has the hash that its repository tells; true where none is told."""
    if self._expected is None:
      return True
    with self._lock:
      self._advance(self._file.size)
      return self._at == self._file.size and self._digest.hexdigest() == self._expected

  def _first_gap(self, present: BlockMap) -> int:
    missing = present.missing([(self._at, self._file.size)]) if self._at < self._file.size else []
    return missing[0][0] if missing else self._file.size

  def _advance(self, end: int) -> None:
    while self._at < end and (data := os.pread(self._descriptor, min(_READ_BYTES, end - self._at), self._at)):
      self._digest.update(data)
      self._at += len(data)
