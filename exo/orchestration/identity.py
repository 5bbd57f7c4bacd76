"""A node's id: its own, and the same again after a restart, also where several nodes share one home."""

from __future__ import annotations

import fcntl
import uuid
from pathlib import Path
from typing import IO

from exo.errors import ConfigError
from exo.machine import this_machine
from exo.private_files import private_folder

_MAX_INSTANCES = 256


class NodeIdentity:
  """Holds the lock on one id until the process ends."""
  def __init__(self, node_id: str, lock: IO[str] | None = None) -> None:
    self.node_id = node_id
    self._lock = lock

  def release(self) -> None:
    if self._lock is not None:
      self._lock.close()
      self._lock = None


def claim_identity(state_dir: Path, node_id: str | None) -> NodeIdentity:
  """The id given, or the first stored one that no running node of this machine uses, made up where there is none.

  Each machine has a folder of its own: where several share an EXO_HOME, locks may not reach from one to the other.

  Raises `ConfigError` when the state folder cannot be written.
  """
  if node_id is not None:
    if not 1 <= len(node_id) <= 64 or not all(c.isalnum() or c in "-_." for c in node_id):
      raise ConfigError(f"--node-id {node_id!r}: up to 64 letters, digits, '-', '_' and '.' are allowed")
    return NodeIdentity(node_id)
  folder = state_dir / "ids" / this_machine().mark
  try:
    private_folder(folder)
    for instance in range(_MAX_INSTANCES):
      lock = (folder / str(instance)).open("a+")
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        lock.close()
        continue
      lock.seek(0)
      stored = lock.read().strip()
      if not stored:
        stored = uuid.uuid4().hex[:12]
        lock.write(stored)
        lock.flush()
      return NodeIdentity(stored, lock)
  except OSError as error:
    raise ConfigError(f"{folder} cannot be written ({error.strerror}): point EXO_HOME to a folder that can") from error
  raise ConfigError(f"{_MAX_INSTANCES} nodes run on this machine already")
