"""File systems of a test's own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def own_disk(folder: Path, options: str) -> Iterator[Path]:
  """A tmpfs, with mount's `options` (`size=8m`, `ro`), at a new folder. Skips the test where the system lets nobody mount."""
  folder.mkdir(parents=True)
  if shutil.which("mount") is None or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder],
                                                     capture_output=True,
                                                     check=False).returncode:
    pytest.skip("mounting a file system needs root, and a system that allows it")
  try:
    yield folder
  finally:
    subprocess.run(["umount", "--lazy", folder], check=True)  # maps of files may still be open
