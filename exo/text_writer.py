"""Text on its way to a descriptor that may be slow, full or gone: written by a thread of its own, in order.

Whoever writes never waits and gets no error. What is not taken in time is lost, oldest first, and its place is marked.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable

_MOST_TEXTS, _MOST_CHARACTERS = 1000, 4 << 20  # that wait
_BATCH_CHARACTERS = 1 << 16
_NEWLINE = 10
_RETRY_S = 0.02  # of a descriptor that takes nothing now


class TextWriter:
  """Writes to `descriptor` for as long as the process lives; its thread starts with the first text."""
  def __init__(self, descriptor: int, encoding: str, lost: Callable[[int], str]) -> None:
    """`lost` says in the reader's form how many lines are missing."""
    self._descriptor, self._encoding, self._lost_text = descriptor, encoding, lost
    self._lock = threading.RLock()  # a finalizer that runs in the middle of a `put` may write a line of its own
    self._bell = threading.Lock()  # held while there is nothing to do: released, it wakes the thread, and never waits
    self._bell.acquire()
    self._texts: deque[str] = deque()
    self._characters = self._lost = 0
    self._thread: threading.Thread | None = None
    self._give_up_at: float | None = None
    self._closing = self._torn = False
    self.error: OSError | None = None

  def put(self, text: str) -> None:
    """Take `text` to be written; what has waited longest is lost when there is too much."""
    with self._lock:
      self._texts.append(text)
      self._characters += len(text)
      while len(self._texts) > _MOST_TEXTS or (self._characters > _MOST_CHARACTERS and len(self._texts) > 1):
        oldest = self._texts.popleft()
        self._characters -= len(oldest)
        self._lost += _lines(oldest)
      if self._thread is None:
        self._thread = threading.Thread(target=self._run, name="text writer", daemon=True)
        self._thread.start()
    self._wake()

  @property
  def is_behind(self) -> bool:
    """Whether its reader is so slow that whoever needs all to arrive should wait."""
    return len(self._texts) > _MOST_TEXTS // 4 or self._characters > _BATCH_CHARACTERS

  @property
  def waiting(self) -> int:
    """Characters that have not been written yet."""
    return self._characters

  def close(self, within_s: float | None) -> None:
    """Wait for what is left to be written, at most so long (None: for as long as its reader takes)."""
    self._give_up_at = None if within_s is None else time.monotonic() + within_s
    self._closing = True
    self._wake()
    if self._thread is not None:
      self._thread.join(within_s)

  def _wake(self) -> None:
    with contextlib.suppress(RuntimeError):  # it rings already
      self._bell.release()

  def _run(self) -> None:
    while True:
      text, taken, lost = self._take()
      if text:
        if lost:
          self._write(self._lost_text(lost), lost)
        self._write(text, 0)
        with self._lock:
          self._characters -= taken
      elif self._closing:
        if lost:
          self._write(self._lost_text(lost), lost)
        return
      else:
        self._bell.acquire()

  def _take(self) -> tuple[str, int, int]:
    """(the next texts as one, their characters, lines that were lost before them)"""
    with self._lock:
      texts: list[str] = []
      size = 0
      while self._texts and size < _BATCH_CHARACTERS:
        texts.append(self._texts.popleft())
        size += len(texts[-1])
      lost = 0
      if texts or self._closing:
        lost, self._lost = self._lost, 0
      return "".join(texts), size, lost

  def _write(self, text: str, lost: int) -> None:
    """All of it, or what can be; `lost` is what its own loss means, where that is not the lines in it."""
    begin = b"\n" if self._torn else b""  # what failed in the middle of a line stays as it is
    data = memoryview(begin + text.encode(self._encoding, "backslashreplace"))
    at = 0
    try:
      while at < len(data) and not self._is_late():
        try:
          at += os.write(self._descriptor, data[at:])
          self.error = None
        except BlockingIOError:
          time.sleep(_RETRY_S)
    except OSError as error:
      self.error = error
    if at:
      self._torn = data[at - 1] != _NEWLINE and at < len(data)
    if at < len(data):
      left = data[max(at, len(begin)):].tobytes().decode(self._encoding, "replace")
      with self._lock:
        self._lost += lost or _lines(left)

  def _is_late(self) -> bool:
    return self._give_up_at is not None and time.monotonic() > self._give_up_at


def _lines(text: str) -> int:
  return max(text.count("\n"), 1)
