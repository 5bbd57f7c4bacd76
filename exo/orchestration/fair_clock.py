"""What each client's share has had, so that the one that has had least is next.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): a share that comes anew begins where the others are, so that nobody
saves up turns by being quiet.
"""

from __future__ import annotations

from collections import OrderedDict

from exo.networking.messages import Request
from exo.oldest import forget_oldest

_MOST_SHARES = 1024  # remembered; one that was forgotten counts as new


def share_of(request: Request) -> str:
  """Whose share the request takes: its client's, or its entry node's where that one tells of no clients."""
  return request.share or f"node {request.entry_node}"


class FairClock:
  """Counts in tokens, in bounded memory."""
  def __init__(self) -> None:
    self._had: OrderedDict[str, float] = OrderedDict()
    self._now = 0.0

  def had(self, share: str) -> float:
    return max(self._now, self._had.get(share, 0.0))

  def turn(self, share: str) -> None:
    """It is this one's turn: whoever comes anew begins here."""
    self._now = self.had(share)

  def charge(self, share: str, tokens: int) -> None:
    self._had[share] = self.had(share) + tokens
    self._had.move_to_end(share)
    forget_oldest(self._had, _MOST_SHARES)
