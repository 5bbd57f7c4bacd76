"""Records on this node's disk: a folder for each owner, a file for each record, for this user alone and within bounds.

All methods block, and raise `OSError` where the disk does not do as it should.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from exo.errors import RecordDamagedError
from exo.networking.record_messages import MAX_RECORD_BYTES, Outcome
from exo.orchestration.record import Owner, Record, is_record_id, record_from
from exo.private_files import write_private_bytes

_SUFFIX = ".rec"
_DAY_S = 86400.0
_FILE_OVERHEAD = 4096  # of ids and hashes in a file


@dataclass(frozen=True, slots=True)
class RecordBounds:
  """Of everything that is kept: beyond them, the owner who has most loses what was not asked for for longest."""
  records: int = 10_000
  total_bytes: int = 512 * 2**20
  age_s: float = 30 * _DAY_S
  look_every: int = 64  # writes between two looks at all files
  look_bytes: int = 16 * 2**20


class RecordStore:
  """Nodes of one EXO_HOME share it. May be used by several threads."""
  def __init__(self, folder: Path, bounds: RecordBounds | None = None) -> None:
    self._folder = folder
    self._bounds = bounds or RecordBounds()
    self._lock = threading.Lock()
    self._writes, self._written = self._bounds.look_every, 0  # so that the first write looks

  def _path(self, owner: Owner, record_id: str) -> Path:
    return self._folder / owner.folder / (record_id + _SUFFIX)

  def keep(self, owner: Owner, record: Record) -> None:
    data = record.to_bytes()
    self._make_room(len(data))
    write_private_bytes(self._path(owner, record.id), data)

  def read(self, owner: Owner, record_id: str) -> Record | None:
    """Raises `RecordDamagedError`."""
    record = self._read(self._path(owner, record_id)) if is_record_id(record_id) else None
    if record is not None and (record.id != record_id or record.key != owner.key(record_id) or not owner.owns(record)):
      raise RecordDamagedError(f"what was kept of {record_id} is damaged")
    return record

  def read_any(self, record_id: str) -> Record | None:
    """Whoever owns it. Raises `RecordDamagedError`."""
    path = self._find(record_id)
    return self._read(path) if path is not None else None

  def shown(self, record_id: str, proof: str, nobodys: Owner | None) -> Record | None:
    """For another node whose client made this proof; `nobodys` is given where what belongs to nobody stays here."""
    path = self._find(record_id)
    if path is None or (nobodys is not None and path.parent.name == nobodys.folder):
      return None
    try:
      record = self._read(path)
    except RecordDamagedError:
      return None
    return record if record is not None and record.is_shown(proof) else None

  def change(self, record_id: str, tag: str, record: Record | None) -> Outcome:
    """Exchange the version `tag`, or forget it."""
    with self._lock:
      path = self._find(record_id)
      known = self._read(path) if path is not None else None
      if path is None or known is None:
        return "none"
      if known.tag != tag:
        return "changed"
      if record is None:
        path.unlink(missing_ok=True)
      else:
        write_private_bytes(path, msgspec.structs.replace(record, key=known.key).to_bytes())
    return "done"

  def forget(self, record_id: str, owner: Owner | None) -> bool:
    """Also what is damaged. None of `owner`'s is as if there were none; with None, whoever owns it."""
    path = self._find(record_id) if owner is None else self._path(owner, record_id)
    if path is None or not is_record_id(record_id):
      return False
    try:
      path.unlink()
    except FileNotFoundError:
      return False
    return True

  def _find(self, record_id: str) -> Path | None:
    if not is_record_id(record_id):
      return None
    paths = (folder / (record_id + _SUFFIX) for folder in self._folders())
    return next((path for path in paths if path.is_file()), None)

  def _folders(self) -> list[Path]:
    try:
      return list(self._folder.iterdir())
    except FileNotFoundError:
      return []

  def _read(self, path: Path) -> Record | None:
    try:
      with path.open("rb") as file:
        if time.time() - os.fstat(file.fileno()).st_mtime > self._bounds.age_s:
          path.unlink(missing_ok=True)
          return None
        data = file.read(MAX_RECORD_BYTES + _FILE_OVERHEAD)
    except FileNotFoundError:
      return None
    with suppress(OSError):
      os.utime(path)  # asked for just now
    return record_from(data)

  # bounds

  def _make_room(self, size: int) -> None:
    with self._lock:
      self._writes, self._written = self._writes + 1, self._written + size
      if self._writes < self._bounds.look_every and self._written < self._bounds.look_bytes:
        return
      self._writes = self._written = 0
      self._forget_most(size)

  def _forget_most(self, size: int) -> None:
    now, owners = time.time(), defaultdict[Path, list[tuple[float, int, Path]]](list)
    for entry in self._files():
      with suppress(OSError):
        status = entry.stat()
        if now - status.st_mtime > self._bounds.age_s:
          Path(entry.path).unlink()
        else:
          path = Path(entry.path)
          owners[path.parent].append((status.st_mtime, status.st_size, path))
    held = {owner: sum(size for _, size, _ in files) for owner, files in owners.items()}
    for files in owners.values():
      files.sort(reverse=True)
    count, total = sum(map(len, owners.values())), sum(held.values()) + size
    while count and (count >= self._bounds.records or total > self._bounds.total_bytes):
      few = total <= self._bounds.total_bytes  # bytes, but too many records
      owner = max((o for o in owners if owners[o]), key=lambda o: len(owners[o]) if few else held[o])
      _, freed, path = owners[owner].pop()
      with suppress(OSError):
        path.unlink()
      count, total, held[owner] = count - 1, total - freed, held[owner] - freed

  def _files(self) -> Iterator[os.DirEntry[str]]:
    for folder in self._folders():
      with suppress(OSError), os.scandir(folder) as entries:
        yield from entries
