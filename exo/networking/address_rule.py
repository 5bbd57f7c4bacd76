"""Whom a node without a cluster key talks to: machines that a home or a lab could own, and those named by hand."""

from __future__ import annotations

import ipaddress
import time
from functools import lru_cache

from exo.networking.adapters import adapters

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# loopback, link-local, private (RFC 1918, RFC 4193) and shared (RFC 6598, which Tailscale and carriers use)
_NEAR: tuple[IPNetwork, ...] = tuple(
    ipaddress.ip_network(network) for network in (
        "127.0.0.0/8", "169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1/128",
        "fe80::/10", "fc00::/7"
    )
)
_REFRESH_S = 10.0
_MAX_CONFIGURED = 4096


@lru_cache(maxsize=4096)
def parse_address(host: str) -> IPAddress | None:
  """The IP address of a literal, with brackets and zone taken off and IPv4 taken out of IPv6; None for a name."""
  try:
    address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
  except ValueError:
    return None
  if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
    return address.ipv4_mapped
  return address


def is_near(address: IPAddress) -> bool:
  """Loopback, link-local, private or 100.64.0.0/10."""
  return any(address.version == network.version and address in network for network in _NEAR)


class AddressRule:
  """`restricted` without a cluster key. With one, whoever proves that they hold it may be anywhere."""
  def __init__(self, restricted: bool) -> None:
    self._restricted = restricted
    self._configured: set[IPAddress] = set()
    self._on_link: tuple[IPNetwork, ...] = ()
    self._looked_at = float("-inf")

  def configure(self, host: str) -> None:
    """Somebody named this address by hand."""
    address = parse_address(host)
    if address is not None and len(self._configured) < _MAX_CONFIGURED:
      self._configured.add(address)

  def allows(self, host: str) -> bool:
    """Whether to talk to `host`, an IP address. Names are never allowed: they are resolved and configured first."""
    if not self._restricted:
      return True
    address = parse_address(host)
    if address is None:
      return False
    return is_near(address) or address in self._configured or self._is_on_link(address)

  def _is_on_link(self, address: IPAddress) -> bool:
    now = time.monotonic()
    if now - self._looked_at > _REFRESH_S:
      self._looked_at, self._on_link = now, _own_networks()
    return any(address.version == network.version and address in network for network in self._on_link)


def _own_networks() -> tuple[IPNetwork, ...]:
  """The networks that this machine's interfaces are on."""
  found = []
  for adapter in adapters():
    for host, prefix in (*adapter.ipv4, *adapter.ipv6):
      network = ipaddress.ip_network(f"{host}/{prefix}", strict=False)
      if network.prefixlen:  # a point-to-point interface may claim the whole Internet
        found.append(network)
  return tuple(found)


def own_addresses() -> frozenset[IPAddress]:
  """Every address of this machine."""
  hosts = (host for adapter in adapters() for host, _ in (*adapter.ipv4, *adapter.ipv6))
  return frozenset(address for host in hosts if (address := parse_address(host)) is not None)
