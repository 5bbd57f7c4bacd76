"""Large messages of which the first pieces are here: together they take only so much memory."""

from __future__ import annotations

from collections.abc import Callable

from exo.errors import ProtocolError

_MOST_BYTES = 512 * 2**20


class Unfinished:
  """Of all links of one node."""
  def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
    self._most_bytes = most_bytes
    self._held: dict[Callable[[ProtocolError], None], int] = {}  # the one that began first, first

  @property
  def total_bytes(self) -> int:
    return sum(self._held.values())

  def hold(self, give_up: Callable[[ProtocolError], None], count: int) -> None:
    """So many bytes more are here of one message. Where all are too many, the one that began first is given up."""
    self._held[give_up] = self._held.get(give_up, 0) + count
    while self.total_bytes > self._most_bytes and len(self._held) > 1:
      first = next(iter(self._held))
      del self._held[first]
      first(ProtocolError("it has begun a large message and does not end it, while others need the memory"))

  def done(self, give_up: Callable[[ProtocolError], None]) -> None:
    """The message is whole, or its stream is over."""
    self._held.pop(give_up, None)
