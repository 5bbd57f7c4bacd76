"""A rate: `burst` at once, `rate` a second in the long run. Pure: whoever calls tells the time, in seconds of one clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from exo.oldest import forget_oldest


class TokenBucket:
  """Full at first."""
  __slots__ = ("_at", "_burst", "_left", "_rate")

  def __init__(self, rate: float, burst: float, now_s: float) -> None:
    self._rate, self._burst = rate, burst
    self._left, self._at = burst, now_s

  def take(self, now_s: float, count: float = 1.0) -> bool:
    """False, and nothing is taken, where `count` are too many now."""
    self._left = min(self._burst, self._left + (now_s - self._at) * self._rate)
    self._at = now_s
    if self._left < count:
      return False
    self._left -= count
    return True


class Buckets:
  """One bucket a key, of which at most `most` are remembered: those used last."""
  def __init__(self, rate: float, burst: float, most: int) -> None:
    self._rate, self._burst, self._most = rate, burst, most
    self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

  def __len__(self) -> int:
    return len(self._buckets)

  def take(self, key: Hashable, now_s: float) -> bool:
    bucket = self._buckets.get(key)
    if bucket is None:
      bucket = self._buckets[key] = TokenBucket(self._rate, self._burst, now_s)
      forget_oldest(self._buckets, self._most)
    else:
      self._buckets.move_to_end(key)
    return bucket.take(now_s)
