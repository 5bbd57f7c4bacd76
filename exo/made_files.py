"""Files that an engine has made of a model's, where it cannot read those: bounded, and given up when they are old or the model goes.

Each lies in a folder of the file that it was made of, whose name stands in it. Whoever uses one holds a lock on it, which the system
frees when a process dies; so what is in use is never given up, and what nobody has finished is seen to be that.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from exo.errors import ModelFilesError
from exo.file_calls import flush, move_over
from exo.sizes import shown_bytes
from exo.system_figures import free_disk

_MOST = 8
_SPARE_BYTES = 1 << 28  # of the disk, that stay free
_SOURCE, _UNFINISHED = "source", ".part"


def made_files_dir(home: Path) -> Path:
  """Where they are of this `EXO_HOME`."""
  return home / ".exo" / "made"


@dataclass(frozen=True, slots=True)
class MadeFile:
  """One that is there. `used_at` is when, as the clock tells it, somebody began to use it."""
  path: Path
  source: str
  n_bytes: int
  used_at: float


class UsedFile:
  """One that is not given up until `close`."""
  def __init__(self, path: Path, descriptor: int) -> None:
    self.path, self._descriptor = path, descriptor

  def close(self) -> None:
    if self._descriptor >= 0:
      os.close(self._descriptor)
      self._descriptor = -1


class MadeFiles:
  """Those in `folder`, which several processes may share. `most` is how many of them stay, those in use aside. Everything blocks."""
  def __init__(self, folder: Path, most: int = _MOST) -> None:
    self._folder, self._most = folder, most

  def use(self, source: Path, name: str, n_bytes: int, write: Callable[[int], None]) -> UsedFile:
    """The file of this name that is made of `source`; if it is not there, `write` puts `n_bytes` into the descriptor of a new one.

    The name says all that its content depends on. Raises `ModelFilesError` where it cannot be made, with what is missing.
    """
    path = self._folder / hashlib.sha256(os.fsencode(source.absolute())).hexdigest()[:16] / name
    try:
      return self._used(path, n_bytes) or self._made(source, path, n_bytes, write)
    except OSError as error:
      raise ModelFilesError(
          f"{self._folder}: a file of {shown_bytes(n_bytes)} that llama.cpp needs of {source.name} cannot be made there "
          f"({error.strerror or error}): point EXO_HOME to a place that can be written"
      ) from error

  def _used(self, path: Path, n_bytes: int) -> UsedFile | None:
    """None where it is not there, or is not whole."""
    try:
      descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
      return None
    try:
      _lock(descriptor, fcntl.LOCK_SH)
      if path.stat().st_size == n_bytes and os.path.samestat(path.stat(), os.fstat(descriptor)):
        path.touch()
        return UsedFile(path, descriptor)
    except FileNotFoundError:  # somebody has given it up meanwhile
      pass
    os.close(descriptor)
    return None

  def _made(self, source: Path, path: Path, n_bytes: int, write: Callable[[int], None]) -> UsedFile:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    (path.parent / _SOURCE).write_text(str(source.absolute()), errors="surrogateescape")
    self._make_room(n_bytes)
    unfinished = path.with_name(f"{path.name}{_UNFINISHED}{os.getpid()}")
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
      _lock(descriptor, fcntl.LOCK_SH)  # which stays with what it becomes
      write(descriptor)
      flush(descriptor)
      move_over(unfinished, path)
    except BaseException:
      with suppress(OSError):
        unfinished.unlink()
      os.close(descriptor)
      raise
    return UsedFile(path, descriptor)

  def _make_room(self, n_bytes: int) -> None:
    """Give up what nobody has finished, and of what nobody uses the oldest, until one more of so many bytes has room."""
    for part in self._folder.glob(f"*/*{_UNFINISHED}*"):
      self._give_up(part)
    unused = sorted(self.listed(), key=lambda made: made.used_at)
    while unused:
      free = free_disk(self._folder)
      if len(unused) < self._most and (free is None or free >= n_bytes + _SPARE_BYTES):
        return
      self._give_up(unused.pop(0).path)
    free = free_disk(self._folder)
    if free is not None and free < n_bytes + _SPARE_BYTES:
      raise ModelFilesError(
          f"the disk of {self._folder} has {shown_bytes(free)} left, and a file of {shown_bytes(n_bytes)} has to be made there: "
          f"free {shown_bytes(n_bytes + _SPARE_BYTES - free)}, or run the model as it is in its file, whole and without --weights mapped"
      )

  def _give_up(self, path: Path) -> int:
    """Returns the bytes that are free now; 0 for one in use."""
    try:
      descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
      return 0
    try:
      _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      size = os.fstat(descriptor).st_size
      path.unlink()
      return size
    except OSError:
      return 0
    finally:
      os.close(descriptor)

  def listed(self) -> Iterator[MadeFile]:
    """Finished ones."""
    for path in self._folder.glob("*/*"):
      if path.name == _SOURCE or _UNFINISHED in path.name:
        continue
      with suppress(OSError):
        status = path.stat()
        source = (path.parent / _SOURCE).read_text(errors="surrogateescape")
        yield MadeFile(path, source, status.st_size, status.st_mtime)

  def of(self, model: Path) -> list[MadeFile]:
    """Those made of a model's file, or of files in its folder."""
    whole = model.absolute()
    return [made for made in self.listed() if Path(made.source) == whole or whole in Path(made.source).parents]

  def remove(self, model: Path) -> int:
    """Of these, all that nobody uses; returns the bytes that are free now."""
    freed = 0
    for made in self.of(model):
      freed += self._give_up(made.path)
      with suppress(OSError):
        if not any(path.name != _SOURCE for path in made.path.parent.iterdir()):
          shutil.rmtree(made.path.parent)
    return freed


def _lock(descriptor: int, how: int) -> None:
  """Raises `BlockingIOError`. A file system without locks keeps what is open, whoever takes its name away."""
  try:
    fcntl.flock(descriptor, how)
  except BlockingIOError:
    raise
  except OSError:
    return
