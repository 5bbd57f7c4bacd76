"""A node's id: its own, and the same again after a restart, also where several nodes share one home."""

from __future__ import annotations

import uuid
from pathlib import Path

from exo.bounds import is_node_id
from exo.download.file_lock import Lock, try_lock
from exo.errors import ConfigError
from exo.machine import this_machine
from exo.private_files import private_folder
from exo.runtime_file import running_nodes

_MAX_CHARACTERS = 64
_MAX_INSTANCES = 256


class NodeIdentity:
  """Holds the lock on one id until the process ends."""
  def __init__(self, node_id: str, lock: Lock | None = None) -> None:
    self.node_id = node_id
    self._lock = lock

  def release(self) -> None:
    if self._lock is not None:
      self._lock.release()
      self._lock = None


def claim_identity(state_dir: Path, node_id: str | None) -> NodeIdentity:
  """The id given, or the first stored one that no running node of this machine uses, made up where there is none.

  Each machine has a folder of its own: where several share an EXO_HOME, locks may not reach from one to the other.

  Raises `ConfigError` when the state folder cannot be written.
  """
  if node_id is not None:
    if len(node_id) > _MAX_CHARACTERS or not is_node_id(node_id):
      raise ConfigError(f"--node-id {node_id!r}: up to {_MAX_CHARACTERS} letters, digits, '-', '_' and '.' are allowed")
    return NodeIdentity(node_id)
  folder = state_dir / "ids" / this_machine().mark
  try:
    private_folder(folder)
    used = {info.node_id for info in running_nodes(state_dir)}
    for instance in range(_MAX_INSTANCES):
      path = folder / str(instance)
      lock = try_lock(path)
      if lock is None:
        continue
      stored = path.read_text(errors="replace").strip() if path.exists() else ""
      if not lock.reaches_others and stored in used:
        lock.release()
        continue
      if not stored:
        stored = uuid.uuid4().hex[:12]
        path.write_text(stored)
      return NodeIdentity(stored, lock)
  except OSError as error:
    raise ConfigError(f"{folder} cannot be written ({error.strerror}): point EXO_HOME to a folder that can") from error
  raise ConfigError(f"{_MAX_INSTANCES} nodes run on this machine already")
