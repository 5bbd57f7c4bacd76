"""What the file system under EXO_HOME lacks, found by trying it: network shares, FAT, FUSE. exo goes on without; here is
said what that costs.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Lack:
  """A facility that is missing, what the system said, and what it costs to be without."""
  what: str
  why: str
  cost: str

  def __str__(self) -> str:
    return f"no {self.what} ({self.why}): {self.cost}"


def lacks(folder: Path) -> list[Lack]:
  """Try everything in a folder of its own in `folder`. Blocks; never raises, and finds nothing where nothing can be written."""
  scratch = folder / f".probe-{secrets.token_hex(4)}"
  found = []
  try:
    scratch.mkdir(mode=0o700)
  except OSError:
    return []
  try:
    for what, attempt, cost in _ATTEMPTS:
      try:
        attempt(scratch / what.split()[0])
      except (OSError, ValueError) as error:
        found.append(Lack(what, getattr(error, "strerror", None) or str(error), cost))
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
  return found


@contextmanager
def _opened(path: Path) -> Iterator[int]:
  descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
  try:
    yield descriptor
  finally:
    os.close(descriptor)


def _lock(path: Path) -> None:
  with _opened(path) as descriptor:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sparse(path: Path) -> None:
  with _opened(path) as descriptor:
    os.ftruncate(descriptor, _BYTES)
    status = os.fstat(descriptor)
    if status.st_blocks * 512 >= _BYTES:
      raise OSError(0, "holes take room")


def _sync(path: Path) -> None:
  with _opened(path) as descriptor:
    os.write(descriptor, b"x")
    os.fsync(descriptor)


def _shared(path: Path) -> None:
  with _opened(path) as descriptor:
    os.write(descriptor, bytes(mmap.PAGESIZE))
    with mmap.mmap(descriptor, mmap.PAGESIZE) as mapped:
      mapped[0] = 1
      mapped.flush()
    if os.pread(descriptor, 1, 0) != b"\1":
      raise OSError(0, "what is mapped is not what is read")


def _rename(path: Path) -> None:
  other = path.with_name("other")
  other.write_text("new")
  path.write_text("old")
  other.replace(path)
  if path.read_text() != "new":
    raise OSError(0, "the old file stays")


def _permissions(path: Path) -> None:
  with _opened(path):
    path.chmod(0o600)
    if path.stat().st_mode & 0o077:
      raise OSError(0, "they are not kept")


def _exclusive(path: Path) -> None:
  for expected in (False, True):
    try:
      os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
      if not expected:
        raise
    else:
      if expected:
        raise OSError(0, "it is not kept to")


_ATTEMPTS: tuple[tuple[str, Callable[[Path], None], str], ...] = (
    ("locks", _lock, "machines that share it must not fetch or delete the same model at once"),
    ("sparse files", _sparse, "a part of a model takes the room of all of it"),
    ("flushing to disk", _sync, "after a crash of the system models may have to be fetched again"),
    ("shared maps of files", _shared, "weights that are used take memory of this process, and loading is slower"),
    ("renaming over a file", _rename, "a crash in the wrong moment may cost a file of settings"),
    ("permissions", _permissions, "other users of this machine may read keys that are kept in it"),
    ("exclusive creation", _exclusive, "none here: names are random"),
)
