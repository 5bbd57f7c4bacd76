"""How far a download has come, as every part of the program hears of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_SPEED_OVER_S = 5.0
_TELL_EVERY_S = 0.2
_MOST_KEPT = 256


@dataclass(frozen=True, slots=True)
class DownloadProgress:
  """One model on one node. `total_bytes` is what this node wants of it (0 where that is not known yet).

  `done` once the files are verified and in place; `error` once it has failed for good. `from_peers_bytes` and
  `from_hub_bytes` came over the network since the node started. `status` is a word for screens.
  """
  model_id: str
  downloaded_bytes: int
  total_bytes: int
  done: bool = False
  bytes_per_s: float = 0.0
  from_peers_bytes: int = 0
  from_hub_bytes: int = 0
  error: str = ""
  status: str = "downloading"

  @property
  def fraction(self) -> float:
    return 1.0 if self.done else min(1.0, self.downloaded_bytes / self.total_bytes) if self.total_bytes else 0.0

  @property
  def left_s(self) -> float | None:
    """Seconds until it is done, as it goes now; None where that cannot be told."""
    if self.done:
      return 0.0
    left = self.total_bytes - self.downloaded_bytes
    return left / self.bytes_per_s if self.bytes_per_s > 0 and self.total_bytes else None

  @property
  def ended(self) -> bool:
    return self.done or bool(self.error)


def keep_latest(downloads: dict[str, DownloadProgress], progress: DownloadProgress) -> None:
  """Note a download's progress by its model; where there are many, the one that ended longest ago is forgotten."""
  downloads[progress.model_id] = progress
  if len(downloads) > _MOST_KEPT:
    ended = next((model_id for model_id, kept in downloads.items() if kept.ended), None)
    if ended is not None:
      del downloads[ended]


ProgressCallback = Callable[[DownloadProgress], None]


class ProgressMeter:
  """Counts what one model's downloads bring and tells of it a few times a second."""
  def __init__(self, model_id: str, tell: ProgressCallback) -> None:
    self._model_id, self._tell = model_id, tell
    self.from_peers = self.from_hub = 0
    self._had = self._total = self._got = 0
    self._seen: deque[tuple[float, int]] = deque()
    self._told_at = 0.0

  def expect(self, had_bytes: int, total_bytes: int, status: str = "downloading") -> None:
    """A download begins: so many bytes are here already of so many that are wanted."""
    self._had, self._total, self._got = had_bytes, total_bytes, 0
    self._seen.clear()
    self._say(status)

  def add(self, count: int, *, from_peer: bool) -> None:
    if from_peer:
      self.from_peers += count
    else:
      self.from_hub += count
    self._got += count
    now = time.monotonic()
    self._seen.append((now, count))
    while now - self._seen[0][0] > _SPEED_OVER_S:
      self._seen.popleft()
    if now - self._told_at >= _TELL_EVERY_S:
      self._say("downloading")

  def at(self, had_bytes: int, total_bytes: int) -> None:
    """For a download that counts by itself."""
    self.add(max(0, had_bytes - self._had - self._got), from_peer=False)
    self._total = total_bytes

  def status(self, status: str) -> None:
    self._say(status)

  def end(self, *, error: str = "") -> None:
    if error:
      self._say("failed", error)
    else:
      self._total = self._total or self._had + self._got
      self._had, self._got = self._total, 0
      self._say("done", done=True)

  def _say(self, status: str, error: str = "", *, done: bool = False) -> None:
    self._told_at = now = time.monotonic()
    span = now - self._seen[0][0] if self._seen else 0.0
    speed = sum(count for _, count in self._seen) / span if span > 0.05 and not done else 0.0
    self._tell(
        DownloadProgress(
            self._model_id, min(self._had + self._got, self._total or self._had + self._got), self._total, done, speed,
            self.from_peers, self.from_hub, error, status
        )
    )
