"""Addresses that take memory page by page when they are first written."""

from __future__ import annotations

import mmap
import platform
import sys

from exo.errors import OutOfMemoryError

# Python names the flag since 3.13; <asm-generic/mman.h> has the number for these
_NUMBER = {"x86_64": 0x4000, "i686": 0x4000, "aarch64": 0x4000, "armv7l": 0x4000, "riscv64": 0x4000}
_NORESERVE = getattr(mmap, "MAP_NORESERVE", _NUMBER.get(platform.machine(), 0) if sys.platform == "linux" else 0)


def reserve(n_bytes: int, purpose: str) -> mmap.mmap:
  """A private map of zeros that may be larger than memory, where the system allows it (not under Linux' strict accounting,
  nor beyond a process's own limit of addresses).

  Raises `OutOfMemoryError` with `purpose` in its message.
  """
  try:
    return mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
  except (OSError, ValueError, OverflowError, MemoryError) as error:
    raise OutOfMemoryError(
        f"this node has no memory left for {purpose}: {n_bytes // 2**20} MB of addresses are refused ({error})"
    ) from error
