"""How much one link may say: far above what any ring of honest nodes reaches, below what a node can bear."""

from __future__ import annotations

from exo.errors import ProtocolError
from exo.networking.messages import Frame, Message, StepResult, TokenDelivery
from exo.networking.token_bucket import TokenBucket

# items a second, and at once: of a stage that computes a thousand steps a second, of downloads at 10 Gbit/s, of heartbeats
# that come together after a stand-still
_RATES = {
    "data": (20_000.0, 100_000.0), "control": (1000.0, 5000.0), "heartbeat": (50.0, 1000.0),
    "bulk": (20_000.0, 50_000.0)
}
_ASIDE_RATE, _ASIDE_BURST = 500.0, 5000.0  # of one-way messages that are no part of a step
MAX_CALLS = 256  # that wait for their answer


class FloodError(ProtocolError):
  """A peer says more than any node has to say."""
  kind = "flood"


class Allowance:
  """Of one link; the clock is the caller's, in seconds."""
  def __init__(self, now_s: float) -> None:
    self._streams = {kind: TokenBucket(rate, burst, now_s) for kind, (rate, burst) in _RATES.items()}
    self._aside = TokenBucket(_ASIDE_RATE, _ASIDE_BURST, now_s)

  def take(self, kind: str, now_s: float) -> None:
    """One item came on a stream of this kind. Raises `FloodError`."""
    if not self._streams[kind].take(now_s):
      raise FloodError(f"it sends more than {_RATES[kind][0]:.0f} messages a second on its {kind} stream")

  def take_aside(self, message: Message, now_s: float) -> None:
    """A one-way message came. Raises `FloodError`."""
    if not isinstance(message, (Frame, StepResult, TokenDelivery)) and not self._aside.take(now_s):
      raise FloodError(f"it sends more than {_ASIDE_RATE:.0f} messages like {type(message).__name__} a second")
