"""What a datagram must pass before a byte of it is parsed: size, rate, sender's address, authentication."""

from __future__ import annotations

import time
from collections.abc import Callable

from exo.errors import ProtocolError
from exo.networking.address_rule import AddressRule
from exo.networking.token_bucket import Buckets, TokenBucket
from exo.networking.udp.beacon import MAX_BYTES
from exo.networking.udp.seal import MAGIC, DatagramSeal

# the nodes of one machine share its address: 16 of them with 8 interfaces each stay below
SOURCE_RATE, SOURCE_BURST = 50.0, 200.0
TOTAL_RATE, TOTAL_BURST = 500.0, 1000.0
MAX_SOURCES = 1024


class DatagramGuard:
  """`seal` None: there is no cluster key. State is bounded whatever comes from however many addresses."""
  def __init__(self, seal: DatagramSeal | None, rule: AddressRule, clock: Callable[[], float] = time.monotonic) -> None:
    self._seal, self._rule, self._clock = seal, rule, clock
    self._total = TokenBucket(TOTAL_RATE, TOTAL_BURST, clock())
    self._sources = Buckets(SOURCE_RATE, SOURCE_BURST, MAX_SOURCES)
    self.dropped = 0

  @property
  def sources(self) -> int:
    """How many senders are remembered."""
    return len(self._sources)

  def open(self, data: bytes, host: str) -> bytes | None:
    """The datagram's body; None where too many come. Raises `ProtocolError` for what must not be listened to."""
    if not self._within_rate(host):
      self.dropped += 1
      return None
    if len(data) > MAX_BYTES:
      raise ProtocolError(f"it has more than {MAX_BYTES} bytes")
    if not self._rule.allows(host):
      raise ProtocolError("without a cluster key only machines of this network are listened to")
    if self._seal is not None:
      return self._seal.open(data)
    if data.startswith(MAGIC):
      raise ProtocolError("it is of a cluster with a key, and this node has none (--cluster-key)")
    return data

  def seal(self, body: bytes) -> bytes:
    """What to send."""
    return body if self._seal is None else self._seal.seal(body)

  def _within_rate(self, host: str) -> bool:
    now = self._clock()
    return self._sources.take(host, now) and self._total.take(now)
