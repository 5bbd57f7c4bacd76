"""Datagrams under a cluster key: encrypted, then authenticated, good for half a minute and for one time.

  4 bytes "EXO" and the version | 8 bytes time in ms since 1970 | 12 bytes nonce | 32 bytes MAC | ciphertext

The MAC is HMAC-SHA256 over the cluster's name and everything else; the ciphertext (ChaCha20, RFC 8439) holds the beacon
with node id and incarnation. Nothing is parsed before the MAC is right.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import time
from collections.abc import Callable

from exo.errors import ProtocolError
from exo.networking.cluster_key import ClusterKey, ClusterKeyring

MAGIC = b"EXO\x01"
FRESH_S = 30.0
_HEADER = struct.Struct(">4sQ12s")
_MAC_BYTES = 32
OVERHEAD_BYTES = _HEADER.size + _MAC_BYTES
_MAX_NONCES = 1 << 14  # only holders of the key can add one


class ReplayedDatagramError(ProtocolError):
  """Heard before: a beacon that came over two interfaces, or one that a stranger recorded."""
  kind = "replayed_datagram"


class WrongClockError(ProtocolError):
  """It is of this cluster, and of another time."""
  kind = "wrong_clock"


class DatagramSeal:
  """Seals what one node sends and opens what it hears."""
  def __init__(self, keyring: ClusterKeyring, clock: Callable[[], float] = time.time) -> None:
    self._keyring, self._clock = keyring, clock
    self._heard: dict[bytes, float] = {}  # nonces in the order of their coming, with the time until which they count

  def seal(self, body: bytes) -> bytes:
    key, nonce = self._keyring.current, os.urandom(12)
    header = _HEADER.pack(MAGIC, int(self._clock() * 1e3), nonce)
    ciphertext = _chacha20(key, nonce, body)
    return header + _mac(key, header, ciphertext) + ciphertext

  def open(self, data: bytes) -> bytes:
    """The body. Raises `ProtocolError` for a datagram that is not of this cluster, and for one heard before."""
    if len(data) < OVERHEAD_BYTES or data[:4] != MAGIC:
      raise ProtocolError("it is not authenticated by a cluster key")
    header, mac, ciphertext = data[:_HEADER.size], data[_HEADER.size:OVERHEAD_BYTES], data[OVERHEAD_BYTES:]
    key = next((k for k in self._keyring.accepted if hmac.compare_digest(mac, _mac(k, header, ciphertext))), None)
    if key is None:
      raise ProtocolError("it is authenticated by another cluster's key")
    _, sent_ms, nonce = _HEADER.unpack(header)
    now, sent = self._clock(), sent_ms / 1e3
    if abs(now - sent) > FRESH_S:
      raise WrongClockError(
          f"its clock differs from this machine's by {sent - now:+.0f} s, and with a cluster key they must agree within "
          f"{FRESH_S:.0f} s: set the one that is wrong (this one says {time.strftime('%Y-%m-%d %H:%M:%S %Z', time.localtime(now))})"
      )
    if nonce in self._heard:
      raise ReplayedDatagramError("it was heard before")
    self._remember(nonce, sent + FRESH_S, now)
    return _chacha20(key, nonce, ciphertext)

  def _remember(self, nonce: bytes, until: float, now: float) -> None:
    if len(self._heard) >= _MAX_NONCES:
      self._heard = {n: u for n, u in self._heard.items() if u >= now}
      if len(self._heard) >= _MAX_NONCES:
        raise ProtocolError("more datagrams of this cluster came than can be remembered")
    self._heard[nonce] = until


def _mac(key: ClusterKey, header: bytes, ciphertext: bytes) -> bytes:
  return hmac.digest(key.datagram_mac, key.name.encode() + header + ciphertext, hashlib.sha256)


def _chacha20(key: ClusterKey, nonce: bytes, data: bytes) -> bytes:
  from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
  return Cipher(algorithms.ChaCha20(key.datagram_cipher, bytes(4) + nonce), None).encryptor().update(data)
