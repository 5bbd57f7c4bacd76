"""Logging by levels 0..9 (`DEBUG`): 0 quiet, 1 membership, plans and requests, 2 hops, 3 frames and shapes, more for less.

`log(1, "node %s joined", node_id)` costs one comparison when the level is off. Output goes to stderr through one sink,
which the terminal view replaces while it owns the screen.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

_level = 0
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7f, *range(0x80, 0xa0)) if code not in (0x09, 0x0a)}


def _to_stderr(line: str) -> None:
  sys.stderr.write(line + "\n")
  sys.stderr.flush()


_sink: Callable[[str], None] = _to_stderr


def set_level(level: int) -> None:
  global _level
  _level = level


def set_sink(sink: Callable[[str], None] | None) -> None:
  """Send lines elsewhere, or back to stderr with None."""
  global _sink
  _sink = sink or _to_stderr


def enabled(level: int) -> bool:
  return _level >= level


def escape(text: str) -> str:
  """Control characters made visible, so that nothing a peer or client sends can drive a terminal."""
  return text.translate(_CONTROL)


def log(level: int, message: str, *args: object) -> None:
  """Write `message % args` when `DEBUG` is at least `level`."""
  if _level >= level:
    stamp = time.strftime("%H:%M:%S", time.localtime())
    _sink(f"{stamp} [{level}] {escape(message % args if args else message)}")


def say(message: str) -> None:
  """A line for the person who started the process, whatever the level."""
  _sink(escape(message))
