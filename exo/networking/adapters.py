"""The network adapters of this machine, as far as it tells of them."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from exo.system_figures import note_unreadable

_ELSEWHERE = (("192.0.2.1", 9), ("10.255.255.255", 9))  # nothing is sent there: the system is asked for its way to them
_GUESSED_PREFIX = 24


@dataclass(frozen=True, slots=True)
class Adapter:
  """`ipv4` and `ipv6`: (address, length of the network's prefix); an IPv6 address has no zone. `index` is its number, 0
  where it is not known."""
  name: str
  index: int
  ipv4: tuple[tuple[str, int], ...]
  ipv6: tuple[tuple[str, int], ...] = ()


def adapters() -> Sequence[Adapter]:
  """Never raises. Where the system does not list them (phones do not): loopback, and the address that packets leave from."""
  try:
    import ifaddr
    return [_from(found) for found in ifaddr.get_adapters()]
  except Exception as error:  # noqa: BLE001 - a library that calls into libc may raise anything
    note_unreadable("its network interfaces", error, "others are looked for where packets leave it")
    return _by_route()


def _from(found: object) -> Adapter:
  name, index, ips = found.name, found.index, list(found.ips)  # type: ignore[attr-defined]
  ipv4 = tuple((ip.ip, ip.network_prefix) for ip in ips if isinstance(ip.ip, str))
  ipv6 = tuple((ip.ip[0], ip.network_prefix) for ip in ips if not isinstance(ip.ip, str))
  return Adapter(name, index or 0, ipv4, ipv6)


def _by_route() -> list[Adapter]:
  found = [Adapter("lo", 0, (("127.0.0.1", 8), ))]
  for target in _ELSEWHERE:
    try:
      with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        address = probe.getsockname()[0]
    except OSError:
      continue
    if not ipaddress.ip_address(address).is_loopback and all(address != a for known in found for a, _ in known.ipv4):
      found.append(Adapter("unknown", 0, ((address, _GUESSED_PREFIX), )))
  return found
