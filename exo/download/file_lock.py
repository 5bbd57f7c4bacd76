"""Locks against other processes; the system frees them when a process dies.

Not every file system has locks (NFS without its lock daemon, some SMB, FUSE and Lustre). There a file in this user's folder
for temporary files stands for the one that cannot be locked: other processes of this machine are kept out, other machines
are not. Where not even that can be, this process alone keeps order in itself.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from exo.errors import DownloadError
from exo.log import log
from exo.tasks import in_own_thread

_POLL_S = 0.1
_HANG_S = 10.0  # of a lock daemon that is away

_lockless = threading.Lock()
_held: set[str] = set()  # by this process, where nothing else keeps its tasks from each other
_stuck: set[Path] = set()  # the system has not answered yet
_noted: set[Path] = set()


class Lock:
  """Held until `release`; without a descriptor it reaches no other process."""
  def __init__(self, path: Path, descriptor: int | None) -> None:
    self._path, self._descriptor = path, descriptor

  @property
  def reaches_others(self) -> bool:
    return self._descriptor is not None

  def release(self) -> None:
    if self._descriptor is None:
      _held.discard(str(self._path))
    elif self._descriptor >= 0:
      os.close(self._descriptor)
      self._descriptor = -1


@asynccontextmanager
async def locked(path: Path, waiting: Callable[[], None]) -> AsyncIterator[None]:
  """Hold the lock; `waiting` is called once when somebody else has it. Tasks of one process exclude each other too.

  Raises `DownloadError` when its file cannot be made, or the file system does not answer.
  """
  told = False
  while (lock := await _tried(path)) is None:
    if not told:
      waiting()
      told = True
    await asyncio.sleep(_POLL_S)
  try:
    yield
  finally:
    lock.release()


async def _tried(path: Path) -> Lock | None:
  try:
    if path in _stuck:
      raise TimeoutError
    return await in_own_thread(lambda: _trying(path), _HANG_S, lambda lock: None if lock is None else lock.release())
  except TimeoutError as error:
    _stuck.add(path)
    raise DownloadError(f"the file system of {path.parent} does not answer: try again when it does") from error
  except OSError as error:
    raise DownloadError(
        f"{path.parent} cannot be written ({error.strerror}): point EXO_HOME to a place that can"
    ) from error


def _trying(path: Path) -> Lock | None:
  try:
    return try_lock(path)
  finally:
    _stuck.discard(path)


def try_lock(path: Path) -> Lock | None:
  """None when somebody has the lock. Blocks while the file system thinks; raises `OSError` when the file cannot be made."""
  while True:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      os.close(descriptor)
      return None
    except OSError as error:
      os.close(descriptor)
      _note(path.parent, error.strerror or str(error))
      return _elsewhere(path)
    if _is_still(path, descriptor):
      return Lock(path, descriptor)
    os.close(descriptor)  # whoever held it has deleted the file


def _elsewhere(path: Path) -> Lock | None:
  with suppress(OSError):
    folder = Path(tempfile.gettempdir()) / f"exo-locks-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077:
      name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]
      descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return Lock(path, descriptor)
      except BlockingIOError:
        os.close(descriptor)
        return None
      except OSError:
        os.close(descriptor)
  with _lockless:
    if str(path) in _held:
      return None
    _held.add(str(path))
  return Lock(path, None)


def _note(folder: Path, why: str) -> None:
  if folder not in _noted:
    _noted.add(folder)
    log(1, "no locks in %s (%s): other machines that share it are not kept out", folder, why)


def _is_still(path: Path, descriptor: int) -> bool:
  try:
    return os.path.samestat(path.stat(), os.fstat(descriptor))
  except OSError:
    return False
