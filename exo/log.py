"""Logging by levels 0..9 (`DEBUG`): 0 quiet, 1 membership, plans and requests, 2 hops, 3 frames and shapes, more for less.

`log(1, "node %s joined", node_id)` costs one comparison when the level is off. Output goes to stderr through one sink,
which the terminal view replaces while it owns the screen. Lines that belong to a request bear its id. Nothing here ever
raises: a line that cannot be written is lost. Where a node runs, nothing here waits either (`standard_streams.py`).
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar

from exo.errors import in_words

request_id: ContextVar[str] = ContextVar("request_id", default="")

_level = 0
_recent: deque[str] = deque(maxlen=200)
_kept: deque[str] = deque(maxlen=500)
_json = False
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7f, *range(0x80, 0xa0)) if code not in (0x09, 0x0a)}
# what turns or breaks lines without being seen: separators, directional marks and overrides; and halves of pairs, which no
# encoding can write
_UNSEEN = {
    code: f"\\u{code:04x}"
    for code in (0x061c, 0x200e, 0x200f, *range(0x2028, 0x202f), *range(0x2066, 0x206a), *range(0xd800, 0xe000))
}
_CONTROL |= _UNSEEN
_JSON_CONTROL = {code: f"\\u{code:04x}" for code in range(0x7f, 0xa0)} | _UNSEEN  # JSON itself escapes those below

_MOST_CHARACTERS = 16384  # of one entry; what is longer is cut


def _write_through(text: str) -> None:
  """For commands: they may wait for whoever reads them."""
  with contextlib.suppress(OSError, ValueError, AttributeError):  # full, gone, closed, never there
    sys.stderr.write(text)
    sys.stderr.flush()


_stream: Callable[[str], None] = _write_through


def _to_stderr(line: str) -> None:
  _recent.append(line)
  _stream(line + "\n")


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


def set_stream(write: Callable[[str], None] | None) -> None:
  """What takes the lines that go to stderr; with None they are written at once, by whoever logs."""
  global _stream
  _stream = write or _write_through


def is_plain() -> bool:
  """Whether lines go to stderr as text, neither as JSON nor to a view."""
  return _sink is _to_stderr and not _json


def recent() -> list[str]:
  """The last lines that went to stderr, for a view that takes over the screen."""
  return list(_recent)


def kept() -> list[str]:
  """The last lines, wherever they went."""
  return list(_kept)


def enabled(level: int) -> bool:
  return _level >= level


def escape(text: str) -> str:
  """Control characters made visible, so that nothing a peer or client sends can drive a terminal."""
  return text.translate(_CONTROL)


def log(level: int, message: str, *args: object, request: str = "") -> None:
  """Write `message % args` when `DEBUG` is at least `level`; `request` where the context does not know the request's id."""
  if _level >= level:
    with contextlib.suppress(Exception):
      _pass_on(_entry(level, _formatted(message, args), request or request_id.get()))


def say(message: str) -> None:
  """A line for the person who started the process, whatever the level."""
  with contextlib.suppress(Exception):
    text = _cut(message)
    _pass_on(_entry(0, text, "") if _json and _sink is _to_stderr else escape(text))


def _pass_on(line: str) -> None:
  _kept.append(line)
  _sink(line)


def lines_lost(count: int) -> str:
  """The entry that stands where `count` lines could not be written."""
  return _entry(0, f"{count} line{'' if count == 1 else 's'} of this log could not be written and were lost", "") + "\n"


def _formatted(message: str, args: tuple[object, ...]) -> str:
  try:
    return _cut(message % args if args else message)
  except Exception as error:  # noqa: BLE001 - whatever is logged may raise anything when it is shown
    return f"{message} (cannot be shown: {in_words(error)})"


def _cut(text: str) -> str:
  more = len(text) - _MOST_CHARACTERS
  return text if more <= 0 else f"{text[:_MOST_CHARACTERS]}… ({more} more characters)"


def _entry(level: int, text: str, request: str) -> str:
  now = time.time()
  if _json and _sink is _to_stderr:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    line = {"time": stamp, "level": level, "message": text} | ({"request_id": request} if request else {})
    return json.dumps(line, ensure_ascii=False).translate(_JSON_CONTROL)
  stamp = time.strftime("%H:%M:%S", time.localtime(now))
  shown = escape(f"{request}: {text}" if request else text).replace(
      "\n", "\\n"
  )  # one entry is one line, whoever wrote it
  return f"{stamp} [{level}] {shown}"
