"""Whether what a peer says it sent arrives. Heartbeats have a connection of their own, so they cannot tell by coming.

Pure: whoever calls tells the time, in seconds of one clock.
"""

from __future__ import annotations

_PATIENCE_S = 4.0
_SLOWEST_BYTES_S = 16 * 1024  # of a link that downloads share


class ArrivalWatch:
  """One direction of one link."""
  def __init__(self) -> None:
    self._arrived = 0
    self._waiting_since: float | None = None

  def overdue(self, sent_bytes: int, arrived_bytes: int, now_s: float) -> bool:
    """`sent_bytes` is what the peer had sent some time ago. True once too much time has passed in which nothing came."""
    if arrived_bytes >= sent_bytes or arrived_bytes != self._arrived:
      self._arrived, self._waiting_since = arrived_bytes, None
    if arrived_bytes >= sent_bytes:
      return False
    if self._waiting_since is None:
      self._waiting_since = now_s
    return now_s - self._waiting_since > _PATIENCE_S + (sent_bytes - arrived_bytes) / _SLOWEST_BYTES_S
