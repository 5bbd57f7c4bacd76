"""Logging by levels 0..9 (`DEBUG`): 0 quiet, 1 membership, plans and requests, 2 hops, 3 frames and shapes, more for less.

`log(1, "node %s joined", node_id)` costs one comparison when the level is off. Output goes to stderr through one sink,
which the terminal view replaces while it owns the screen. Lines that belong to a request bear its id.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")

_level = 0
_recent: deque[str] = deque(maxlen=200)
_json = False
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7f, *range(0x80, 0xa0)) if code not in (0x09, 0x0a)}
# what turns or breaks lines without being seen: separators, directional marks and overrides
_UNSEEN = {code: f"\\u{code:04x}" for code in (0x061c, 0x200e, 0x200f, *range(0x2028, 0x202f), *range(0x2066, 0x206a))}
_CONTROL |= _UNSEEN
_JSON_CONTROL = {code: f"\\u{code:04x}" for code in range(0x7f, 0xa0)} | _UNSEEN  # JSON itself escapes those below


def _to_stderr(line: str) -> None:
  _recent.append(line)
  sys.stderr.write(line + "\n")
  sys.stderr.flush()


_sink: Callable[[str], None] = _to_stderr


def set_level(level: int) -> None:
  global _level
  _level = level


def set_format(name: str) -> None:
  """`text` for people, or `json`: one object a line with `time`, `level`, `message` and, where there is one, `request_id`."""
  global _json
  _json = name == "json"


def set_sink(sink: Callable[[str], None] | None) -> None:
  """Send lines elsewhere, or back to stderr with None."""
  global _sink
  _sink = sink or _to_stderr


def recent() -> list[str]:
  """The last lines that went to stderr, for a view that takes over the screen."""
  return list(_recent)


def enabled(level: int) -> bool:
  return _level >= level


def escape(text: str) -> str:
  """Control characters made visible, so that nothing a peer or client sends can drive a terminal."""
  return text.translate(_CONTROL)


def log(level: int, message: str, *args: object, request: str = "") -> None:
  """Write `message % args` when `DEBUG` is at least `level`; `request` where the context does not know the request's id."""
  if _level >= level:
    _write(level, message % args if args else message, request or request_id.get())


def say(message: str) -> None:
  """A line for the person who started the process, whatever the level."""
  if _json and _sink is _to_stderr:
    _write(0, message, "")
  else:
    _sink(escape(message))


def _write(level: int, text: str, request: str) -> None:
  now = time.time()
  if _json and _sink is _to_stderr:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    line = {"time": stamp, "level": level, "message": text} | ({"request_id": request} if request else {})
    _sink(json.dumps(line, ensure_ascii=False).translate(_JSON_CONTROL))
    return
  stamp = time.strftime("%H:%M:%S", time.localtime(now))
  shown = escape(f"{request}: {text}" if request else text).replace(
      "\n", "\\n"
  )  # one entry is one line, whoever wrote it
  _sink(f"{stamp} [{level}] {shown}")
