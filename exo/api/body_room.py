"""How many bytes of requests' bodies a node holds at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from exo.api.aside import LARGE
from exo.errors import QueueFullError

MAX_BODIES_BYTES = 256 * 2**20
_RETRY_S = 5


class BodyRoom:
  """Counts large bodies from before they are read until their request is answered; small ones are bounded by their number."""
  def __init__(self, most: int = MAX_BODIES_BYTES) -> None:
    self._most = most
    self.held = 0

  @contextmanager
  def hold(self, length: int) -> Iterator[Callable[[int], None]]:
    """Room for a body of at most so many bytes while the block runs, which says with what it gets how long it is.

    Raises `QueueFullError` where there is no room.
    """
    mine = 0

    def settle(size: int) -> None:
      nonlocal mine
      size = size if size >= LARGE else 0
      self.held, mine = self.held + size - mine, size

    if length >= LARGE and self.held + length > self._most:
      raise QueueFullError("too many large requests are being read or answered", retry_after_s=_RETRY_S)
    settle(length)
    try:
      yield settle
    finally:
      settle(0)
