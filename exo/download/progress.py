"""How far a download has come, as every part of the program hears of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DownloadProgress:
  """`total_bytes` 0 where it is not known yet; `done` once the files are verified and in place."""
  model_id: str
  downloaded_bytes: int
  total_bytes: int
  done: bool = False

  @property
  def fraction(self) -> float:
    return 1.0 if self.done else min(1.0, self.downloaded_bytes / self.total_bytes) if self.total_bytes else 0.0


ProgressCallback = Callable[[DownloadProgress], None]
