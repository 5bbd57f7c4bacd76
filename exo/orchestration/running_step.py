"""The step that a stage computes now: whose it is, and whether it would go on for long if somebody went."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from exo.inference.engine import BatchEntry
from exo.log import log

_LONG_S = 0.25  # of a step that is not waited for


class RunningStep:
  """Begun and ended on the device thread, cancelled on the event loop. `abort` ends what the engine computes."""
  def __init__(self, abort: Callable[[], None]) -> None:
    self._abort, self._lock = abort, threading.Lock()
    self._requests: dict[int, str] = {}
    self._started, self._expected_s = 0.0, float("inf")
    self._row_s: dict[bool, float] = {}  # of prompts (True) and of single tokens, as in the latest step
    self.cancelled: set[int] = set()  # sequences of this step that nobody wants any more

  @contextmanager
  def of(self, entries: tuple[BatchEntry, ...], requests: Mapping[int, str]) -> Iterator[None]:
    """While the block computes these entries, of the requests by sequence."""
    is_prompt = any(entry.n_tokens > 1 for entry in entries)
    rows = sum(entry.n_tokens for entry in entries)
    with self._lock:
      self._requests, self._started = dict(requests), time.monotonic()
      self._expected_s = rows * self._row_s.get(is_prompt, float("inf"))
    try:
      yield
      if not self.cancelled:
        self._row_s[is_prompt] = (time.monotonic() - self._started) / rows
    finally:
      with self._lock:
        self._requests.clear()
        self.cancelled.clear()

  def cancel(self, request_id: str) -> None:
    """Nobody wants what it computes of a request any more: it ends, unless it does so soon by itself."""
    with self._lock:
      gone = {sequence for sequence, of in self._requests.items() if of == request_id}
      if gone and self._left_s() > _LONG_S:
        log(1, "the step that runs is ended", request=request_id)
        self.cancelled |= gone
        self._abort()

  def _left_s(self) -> float:
    """One that is late goes on for as long again, as far as anybody knows."""
    spent_s = time.monotonic() - self._started
    return self._expected_s - spent_s if spent_s < self._expected_s else spent_s
