"""Makes one call of those that a block of code makes raise, whichever is asked for: so each can be tried in turn."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from test.support.nodes import ROOT

# what an array's pages are given back with: arithmetic and calls whose errors are caught
_CANNOT_RAISE = frozenset({"release", "advise", "_release", "madvise", "len", "max", "min", "append", "extend", "get"})


class InterruptedCallError(Exception):
  """What a call raises instead of being made."""


class Interruptions:
  """`calls` counts what the last block called, functions of the folder and those in C that these call."""
  def __init__(self, folder: str) -> None:
    self._folder = str(ROOT / folder)
    self.calls = 0

  @contextmanager
  def at(self, number: int | None) -> Iterator[None]:
    """The call of this number, from 0, raises `InterruptedCallError`; None only counts."""
    self.calls = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
      if event not in ("call", "c_call") or not frame.f_code.co_filename.startswith(self._folder):
        return
      if frame.f_code.co_flags & inspect.CO_GENERATOR:  # may be the end of one, where nobody hears of it
        return
      if (frame.f_code.co_name if event == "call" else argument.__name__) in _CANNOT_RAISE:
        return
      self.calls += 1
      if self.calls - 1 == number:
        sys.setprofile(None)
        raise InterruptedCallError(f"call {number}: {frame.f_code.co_qualname}")

    sys.setprofile(profile)
    try:
      yield
    finally:
      sys.setprofile(None)
