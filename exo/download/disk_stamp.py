"""What tells files on disk from those that lay there before, without reading them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

Stamp = tuple[tuple[int, ...],
              ...]  # of each file device, inode, size and, where asked for, time of change in ns; () if gone


def stamp_of(paths: Iterable[Path], *, times: bool = True) -> Stamp:
  """Equal as long as none of the files was replaced, cut off or removed and, with `times`, none was written to."""
  return tuple(_of(path, times) for path in paths)


def _of(path: Path, times: bool) -> tuple[int, ...]:
  try:
    found = path.stat()
  except OSError:
    return ()
  return (found.st_dev, found.st_ino, found.st_size, *((found.st_mtime_ns, ) if times else ()))
