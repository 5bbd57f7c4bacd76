"""Large pages under memory that is in use, asked for behind the back of whoever uses it."""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from exo.inference.llama_cpp import large_pages
from exo.inference.llama_cpp.large_pages import LargePages
from test.support.nodes import wait_until

_SIZE = 64 << 20


def megabytes(what: str) -> int:
  found = re.search(rf"^{what}:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
  return int(found[1]) >> 10 if found is not None else 0


@pytest.mark.skipif(
    sys.platform != "linux" or not large_pages._is_known(ctypes.CDLL(None)), reason="this kernel makes none on request"
)
def test_issue_19_weights_come_to_lie_in_large_pages_and_what_is_not_used_stays_unused(
    monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(large_pages, "_SOON_S", 0.0)
  used, unused = (mmap.mmap(-1, _SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2))
  for each in (used, unused):
    each.madvise(15)  # MADV_NOHUGEPAGE, until all is there
  numbers = np.frombuffer(used, np.uint8)
  numbers[:] = np.arange(_SIZE, dtype=np.uint8)
  np.frombuffer(unused, np.uint8)[::1 << 21] = 1
  for each in (used, unused):
    each.madvise(14)
  large, held = megabytes("AnonHugePages"), megabytes("Rss")
  pages = LargePages()
  with pages.computing():
    pages.want()
    wait_until(lambda: megabytes("AnonHugePages") >= large + 4, 10, "the first ones")
  wait_until(lambda: megabytes("AnonHugePages") >= large + (_SIZE >> 20) - 4, 10, "large pages")
  assert megabytes("Rss") < held + 32
  assert (numbers == np.arange(_SIZE, dtype=np.uint8)).all()
