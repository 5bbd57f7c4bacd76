"""A file that is fetched in part: written by blocks, each with its hash, so that nothing is ever fetched twice.

All methods block; call them in a thread. One writer at a time, which holds the model's lock.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from exo.download.manifest import RepoFile
from exo.download.pinned_blocks import PINNED_BYTES, pinned_blocks, shortened
from exo.download.whole_hash import WholeHash
from exo.errors import DownloadError, ModelFilesError
from exo.file_calls import flush, move_over, set_size
from exo.inference.weights.block_map import BlockMap, Span, digests_of, identity_hash, map_path, merged
from exo.log import log

_READ_BYTES = 1 << 22


class FalseBytesError(ModelFilesError):
  """Bytes that are not those of the file, as exo itself knows."""


class SparseFile:
  """`path` has its full length from the beginning; `map` tells which of its blocks are there."""
  def __init__(self, path: Path, file: RepoFile, identity: str, *, quick: bool = False) -> None:
    """Open or create; what lies there of another `identity` goes.

    What an earlier, interrupted download left is checked against its hashes first; a file that came here by other means
    is kept if it has the right size and (unless `quick`) the right hash.

    Raises `DownloadError` when the disk does not let it.
    """
    self.path, self.file, self._identity = path, file, identity
    try:
      path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
      if file.size == 0:
        path.touch()
      self.map = self._open_map(quick)
      self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
    except OSError as error:
      raise disk_error(path, error) from error
    try:
      if os.fstat(self._descriptor).st_size != file.size:
        set_size(self._descriptor, file.size)
      self._hash = WholeHash(self._descriptor, file)
      self.pinned = pinned_blocks(file)
      self._recheck()
      self._check_pinned()
    except OSError as error:
      self.close()
      raise disk_error(path, error) from error

  def _open_map(self, quick: bool) -> BlockMap:
    sidecar = map_path(self.path)
    found = self.path.stat() if self.path.is_file() else None
    if sidecar.is_file() and found is not None and found.st_size == self.file.size:
      try:
        found_map = BlockMap(sidecar, writable=True)
        if found_map.identity == identity_hash(self._identity):
          return found_map
      except ModelFilesError as error:
        log(1, "starting %s anew: %s", self.file.name, error)
    if found is not None and not sidecar.is_file() and found.st_size == self.file.size:
      return self._adopt(sidecar, found.st_mtime_ns, quick)
    self.path.unlink(missing_ok=True)
    return self._new_map(sidecar)

  def _new_map(self, sidecar: Path) -> BlockMap:
    return BlockMap.create(sidecar, max(self.file.size, 1), self._identity)

  def _adopt(self, sidecar: Path, mtime_ns: int, quick: bool) -> BlockMap:
    """A whole file without a map: hash it, and start anew when it is another."""
    checked = not quick and (self.file.sha256 or self.file.git_oid)
    if checked and not matches(self.path, self.file):
      self.path.unlink()
      return self._new_map(sidecar)
    made = self._new_map(sidecar.with_suffix(".new"))
    with self.path.open("rb") as data:
      at = 0
      while piece := data.read(max(_READ_BYTES, made.block)):
        made.mark(at, digests_of(piece, made.block))
        at += len(piece)
    made.stamp(mtime_ns, verified=bool(checked))
    move_over(made.path, sidecar)
    return BlockMap(sidecar, writable=True)

  def _recheck(self) -> None:
    """After a crash, or when somebody else wrote to the file: forget blocks that are not what their hashes say."""
    if self.map.synced_ns == os.fstat(self._descriptor).st_mtime_ns:
      return
    for start, end in self.map.held():
      for at in range(start, end, self.map.block):
        stop = min(at + self.map.block, end)
        if digests_of(os.pread(self._descriptor, stop - at, at), self.map.block) != self.map.digests(at, stop):
          self.map.clear([(at, stop)])
    self.map.stamp(0, verified=False)

  def _check_pinned(self) -> None:
    """Forget blocks that came before exo knew better."""
    if self.pinned is None or self.map.verified:
      return
    for start, end in self.map.held():
      for at in range(start, end, self.map.block):
        if not self._is_pinned(at, self.map.digests(at, min(at + self.map.block, end))):
          self.map.clear([(at, min(at + self.map.block, end))])

  def _is_pinned(self, start: int, digests: bytes) -> bool:
    """Whether blocks from `start` on have the hashes that exo carries; true where it carries none."""
    short, at = shortened(digests), start // self.map.block * PINNED_BYTES
    return self.pinned is None or self.pinned[at:at + len(short)] == short

  def missing(self, spans: list[Span]) -> list[Span]:
    return self.map.missing(spans) if self.file.size else []

  def write(self, start: int, data: bytes, digests: bytes | None = None) -> None:
    """Whole blocks from `start` on; `digests`, where given, are what they must hash to.

    Raises `DownloadError` when the disk is full, `ValueError` when the hashes differ, `FalseBytesError` for bytes that
    have other hashes than those that exo carries.
    """
    found = digests_of(data, self.map.block)
    if digests is not None and found != digests:
      raise ValueError("the bytes are not what their hashes say")
    if not self._is_pinned(start, found):
      raise FalseBytesError(f"bytes {start}..{start + len(data)} of {self.file.name} are not those that exo knows")
    try:
      if self.map.synced_ns:
        self.map.stamp(0, verified=False)
      view, at = memoryview(data), start
      while view:
        written = os.pwrite(self._descriptor, view, at)
        view, at = view[written:], at + written
      self.map.mark(start, found)
      self._hash.follow(self.map)
    except OSError as error:
      raise disk_error(self.path, error) from error

  def sync(self) -> None:
    """All that was written is on disk from here on. Raises `DownloadError`."""
    if self.map.synced_ns:
      return
    try:
      flush(self._descriptor)
      self.map.stamp(os.fstat(self._descriptor).st_mtime_ns, verified=self.map.verified)
    except OSError as error:
      raise disk_error(self.path, error) from error

  @property
  def is_whole(self) -> bool:
    return self.file.size == 0 or self.map.is_whole

  @property
  def is_hashed(self) -> bool:
    """The list of files tells a hash of this one."""
    return self.file.sha256 is not None or self.file.git_oid is not None

  def verify(self) -> bool:
    """Whether the whole file has the hash that its repository tells; true where none is told. Remembered."""
    if self.map.verified:
      return True
    if os.fstat(self._descriptor).st_size != self.file.size or not self._hash.matches():
      return False
    self.map.stamp(self.map.synced_ns, verified=True)
    return True

  def forget(self, spans: list[Span] | None = None) -> None:
    """Let these blocks, or every one, count as missing."""
    self.map.clear([(0, max(self.file.size, 1))] if spans is None else spans)
    self.map.stamp(0, verified=False)
    self._hash.reset()

  def close(self) -> None:
    """A whole file of any kind but weights needs its map no longer."""
    if self._descriptor >= 0:
      os.close(self._descriptor)
      self._descriptor = -1
    if not self.file.is_weights and self.is_whole and self.map.verified:
      self.map.path.unlink(missing_ok=True)


def matches(path: Path, file: RepoFile) -> bool:
  """Whether a file on disk has the size and the hash that the repository tells of it."""
  if path.stat().st_size != file.size:
    return False
  with path.open("rb") as data:
    return WholeHash(data.fileno(), file).matches()


def disk_error(path: Path, error: OSError) -> DownloadError:
  if error.errno == errno.EFBIG:
    return DownloadError(
        f"{path.name} is larger than a file can be there (FAT ends at 4 GB): point EXO_HOME to another file system"
    )
  if error.errno in (errno.ENOSPC, errno.EDQUOT):
    return DownloadError(
        f"the disk is full: {path.name} stays as far as it came. Make room (`exo rm MODEL`), or point EXO_HOME elsewhere"
    )
  return DownloadError(f"{path} cannot be written ({error.strerror}): point EXO_HOME to a place that can")


def held_spans(path: Path) -> list[Span]:
  """What of a file is here: all of it where it has no map."""
  if not path.is_file():
    return []
  blocks = BlockMap.beside(path)
  return merged(blocks.held()) if blocks is not None else [(0, path.stat().st_size)]
