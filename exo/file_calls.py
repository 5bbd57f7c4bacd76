"""Calls that not every file system has, each with another way to the same end: network shares, FAT, FUSE."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

# what file systems answer to calls that they do not have
UNSUPPORTED = (
    errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOTTY, errno.EPERM, errno.ENODEV, errno.ENOLCK
)
_ZEROS = bytes(1 << 20)


def move_over(part: Path, path: Path) -> None:
  """Give `part` the name `path`, whatever has it now. Where a file system cannot exchange a file in one step, there is a
  moment without one of this name, or with half of it.
  """
  try:
    part.replace(path)
  except OSError as error:
    if error.errno not in (*UNSUPPORTED, errno.EEXIST, errno.EACCES, errno.EXDEV) or not part.is_file():
      raise
    path.unlink(missing_ok=True)
    try:
      part.rename(path)
    except OSError:
      mode = stat.S_IMODE(part.stat().st_mode)
      with part.open("rb") as data, os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, mode), "wb") as out:
        shutil.copyfileobj(data, out)
      part.unlink()


def write_whole(path: Path, data: bytes, *, lasting: bool = False) -> None:
  """All of `data` or what was there before; `lasting` is on disk when this returns. Blocks; raises `OSError`."""
  part = path.with_suffix(".part")
  with part.open("wb") as out:
    out.write(data)
    if lasting:
      out.flush()
      flush(out.fileno())
  move_over(part, path)


def create(path: Path, mode: int) -> int:
  """A new file, open to write; `path` must be a name that nobody guesses, where the system cannot tell new from old."""
  flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
  try:
    return os.open(path, flags | os.O_EXCL, mode)
  except OSError as error:
    if error.errno not in UNSUPPORTED:
      raise
    return os.open(path, flags, mode)


def flush(descriptor: int) -> None:
  """Onto the disk. A file system that has no such call is trusted: hashes tell when a crash has proved it wrong."""
  try:
    os.fsync(descriptor)
  except OSError as error:
    if error.errno not in (*UNSUPPORTED, errno.EROFS):
      raise


def set_size(descriptor: int, size: int) -> None:
  """Where a file cannot be made longer at once, by writing its last byte, or else all of them."""
  try:
    os.ftruncate(descriptor, size)
  except OSError as error:
    if error.errno not in UNSUPPORTED or os.fstat(descriptor).st_size > size:
      raise
    try:
      os.pwrite(descriptor, b"\0", size - 1)
    except OSError as refused:
      if refused.errno not in UNSUPPORTED:
        raise
      for at in range(os.fstat(descriptor).st_size, size, len(_ZEROS)):
        os.pwrite(descriptor, _ZEROS[:size - at], at)
