"""What a streaming client hears while it waits for the first token, as llama.cpp's server tells it, and its place in the line."""

from __future__ import annotations

import time
from typing import Any

from exo.networking.messages import PromptProgress


class Waiting:
  """Of one request that asks for `return_progress`; of others nothing is told."""
  def __init__(self, asked: bool) -> None:
    self._untold = asked
    self._begun_at: float | None = None

  def told(self, progress: PromptProgress) -> dict[str, Any]:
    """The fields of a chunk."""
    if progress.place:
      return {"queue": {"place": progress.place}}
    return self._fields(progress.total, progress.cached, progress.processed)

  def last(self, total: int, cached: int) -> dict[str, Any]:
    """Before the first text: the whole prompt is computed. Empty where that is said already, or nobody asked."""
    if not self._untold:
      return {}
    self._untold = False
    return self._fields(total, cached, total)

  def _fields(self, total: int, cached: int, processed: int) -> dict[str, Any]:
    now = time.monotonic()
    if self._begun_at is None:
      self._begun_at = now
    ms = round((now - self._begun_at) * 1000)
    return {"prompt_progress": {"total": total, "cache": cached, "processed": processed, "time_ms": ms}}
