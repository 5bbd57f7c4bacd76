"""Files and folders for this user alone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from exo.file_calls import create, move_over


def private_folder(path: Path) -> Path:
  """Make `path` and whatever is missing above it, each with mode 0700; what is there stays as it is."""
  missing = [folder for folder in (path, *path.parents) if not folder.exists()]
  for folder in reversed(missing):
    folder.mkdir(mode=0o700, exist_ok=True)
  return path


def write_private(path: Path, text: str) -> None:
  """With mode 0600, and complete from the moment it has its name; two who write it at once do not mix."""
  write_private_bytes(path, text.encode())


def write_private_bytes(path: Path, data: bytes) -> None:
  """As `write_private`."""
  private_folder(path.parent)
  part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
  descriptor = create(part, 0o600)
  try:
    with os.fdopen(descriptor, "wb") as file:
      file.write(data)
    move_over(part, path)
  finally:
    part.unlink(missing_ok=True)
