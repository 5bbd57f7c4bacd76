"""Huge pages for weights: every token streams through all of them, and 4 kB pages cost 4 % of that in address lookups."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

from exo.process_memory import give_back

_MIN_BYTES = 4 * 2**20
_MIN_FILL = 0.2  # the allocator's heaps of 64 MB are often half used
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # <asm-generic/mman-common.h>; Linux 2.6.38 and 6.1
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (rw\S*) \S+ \S+ \d+ *(\S*)$")


def use_huge_pages() -> None:
  """Ask the kernel to put this process's large private memory on huge pages; does nothing where it cannot.

  Mappings that are mostly empty are left alone, so that reserved addresses stay reserved.
  """
  if sys.platform != "linux":
    return
  try:
    libc = ctypes.CDLL(None)
    give_back()  # what converting the weights left behind
    smaps = Path("/proc/self/smaps").read_text()
  except OSError:
    return
  mapping: tuple[int, int] | None = None
  for line in smaps.splitlines():
    if match := _MAPPING.match(line):
      start, end = int(match[1], 16), int(match[2], 16)
      mapping = (start, end - start) if match[4] in ("", "[heap]") and end - start >= _MIN_BYTES else None
    elif mapping and line.startswith("Rss:"):
      start, size = mapping
      if int(line.split()[1]) * 1024 > _MIN_FILL * size:
        for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
          libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)
