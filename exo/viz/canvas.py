"""Draws pictures on the terminal from a thread of its own, so that a terminal which is not read keeps nobody waiting."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time

from rich.console import Console, RenderableType
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

_STDOUT = 1
_RETRY_S = 0.02
_LAST_S = 0.5  # for leaving the terminal as it was
_STOPPED_S = 1.5  # between two pictures: the process stood still, and others may have written to the terminal


class Canvas:
  """Of pictures that come while one is being drawn, the newest counts."""
  def __init__(self) -> None:
    self._file = _Terminal()
    self._console = Console(file=self._file, force_terminal=True)
    self._newest: RenderableType = Text()
    self._bell, self._ending = threading.Event(), False
    self._thread = threading.Thread(target=self._run, name="terminal view", daemon=True)
    self._thread.start()

  @property
  def size(self) -> tuple[int, int]:
    """(columns, lines)"""
    return self._console.size.width, self._console.size.height

  @property
  def is_gone(self) -> bool:
    """Whether there is no terminal any more."""
    return self._file.is_gone

  def show(self, picture: RenderableType) -> None:
    self._newest = picture
    self._bell.set()

  def close(self) -> None:
    """Leave the terminal as it was, if it takes that soon."""
    self._ending = True
    self._file.give_up_at = time.monotonic() + _LAST_S
    self._bell.set()
    self._thread.join(_LAST_S + _RETRY_S)

  def _run(self) -> None:
    with contextlib.suppress(Exception):  # whatever a terminal or its description does, the node goes on without a view
      live = Live(console=self._console, auto_refresh=False, screen=True, redirect_stdout=False, redirect_stderr=False)
      with live:
        self._draw(live)
    if not self._ending:
      self._file.is_gone = True

  def _draw(self, live: Live) -> None:
    """Write only what has changed since last time, and all of it over what is there: nothing is ever blank between."""
    shown: list[list[Segment]] = []
    drawn_at = 0.0
    while not self._ending and not self._file.is_gone:
      self._bell.wait()
      self._bell.clear()
      picture = self._newest
      lines = self._console.render_lines(picture, pad=True)
      if not _in_foreground() or self._ending:
        shown = []
      elif lines != shown or time.monotonic() - drawn_at > _STOPPED_S:
        shown = lines
        live.update(picture, refresh=True)
      drawn_at = time.monotonic()


def _in_foreground() -> bool:
  """Whether the terminal is ours to draw on: after Ctrl-Z and `bg` it is the shell's."""
  try:
    return os.tcgetpgrp(_STDOUT) == os.getpgrp()
  except OSError:
    return True


class _Terminal(io.StringIO):
  """What rich writes to: `flush` waits for the terminal, until it is gone or `give_up_at` has passed."""
  def __init__(self) -> None:
    super().__init__()
    self._encoding = sys.stdout.encoding or "utf-8"
    self.give_up_at: float | None = None
    self.is_gone = False

  @property
  def encoding(self) -> str:  # type: ignore[override]
    return self._encoding

  def isatty(self) -> bool:
    return True

  def flush(self) -> None:
    data = memoryview(self.getvalue().encode(self._encoding, "replace"))
    self.seek(0)
    self.truncate()
    while data and not self.is_gone:
      try:
        data = data[os.write(_STDOUT, data):]
      except BlockingIOError:
        if self.give_up_at is not None and time.monotonic() > self.give_up_at:
          return
        time.sleep(_RETRY_S)
      except OSError:
        self.is_gone = True
