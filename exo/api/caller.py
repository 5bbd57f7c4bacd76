"""Who asks: what a request's client may do, and whose share of the ring it takes."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass

from aiohttp import web

from exo.networking.address_rule import IPAddress, parse_address

_LABEL_CHARS = 32
_CLIENT_BITS = 64  # of a public IPv6 address: one machine has all the others below it


@dataclass(frozen=True, slots=True)
class Caller:
  """`label` is one client's, and tells nothing of it to whoever sees it. Caches are shared within one `cache_salt`.

  An admin may do what changes the node for others. `may_fetch`: what it asks may bring a model here. `key` is the hash of the
  API key to which what is kept for this client belongs; empty without one.
  """
  label: str = ""
  is_admin: bool = False
  cache_salt: str = ""
  may_fetch: bool = True
  key: str = ""


_NOBODY = Caller()
_CALLER: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
  """Of the HTTP request that is being handled."""
  return _CALLER.get(_NOBODY)


def note_caller(who: Caller) -> None:
  # not reset: every request has a context or a value of its own
  _CALLER.set(who)


class Labels:
  """Labels of clients: the same for one client, and without the salt not to be guessed."""
  def __init__(self, salt: bytes) -> None:
    self._salt = salt

  def of_key(self, digest: str) -> str:
    return self._label(f"key {digest}")

  def of_address(self, address: IPAddress | None) -> str:
    if isinstance(address, ipaddress.IPv6Address) and address.is_global:
      network = ipaddress.ip_network((address, _CLIENT_BITS), strict=False)
      return self._label(f"address {network}")
    return self._label(f"address {address}")

  def _label(self, text: str) -> str:
    return hmac.new(self._salt, text.encode(), hashlib.sha256).hexdigest()[:_LABEL_CHARS]


class TrustedProxies:
  """Whose word is taken for where a request came from."""
  def __init__(self, networks: Iterable[str]) -> None:
    self._networks = tuple(ipaddress.ip_network(network, strict=False) for network in networks)

  def trusts(self, address: IPAddress | None) -> bool:
    return address is not None and any(
        address.version == network.version and address in network for network in self._networks
    )

  def client_of(self, request: web.BaseRequest) -> IPAddress | None:
    """The address of the client: where a trusted proxy hands its request on, the nearest that is no such proxy.

    What a client wrote into `X-Forwarded-For` itself stands further left, where nobody looks.
    """
    address = parse_address(request.remote or "")
    if not self._networks:
      return address
    hops = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
    while hops and self.trusts(address):
      said = _hop(hops.pop())
      if said is None:
        break
      address = said
    return address

  def host_of(self, request: web.BaseRequest) -> str:
    """What the client asked: where a trusted proxy hands its request on, the name that the proxy was asked by."""
    told = request.headers.get("X-Forwarded-Host", "").partition(",")[0].strip()
    return told if told and self.trusts(parse_address(request.remote or "")) else request.headers.get("Host", "")


def _hop(text: str) -> IPAddress | None:
  """ "10.0.0.1", "10.0.0.1:80", "2001:db8::1" or "[2001:db8::1]:80"."""
  text = text.strip()
  if text.startswith("["):
    return parse_address(text[1:].partition("]")[0])
  return parse_address(text.partition(":")[0] if text.count(":") == 1 else text)
