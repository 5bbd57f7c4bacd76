"""By which names this node may be asked for: a page whose name was made to point here (DNS rebinding) asks by its own."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable

from exo.networking.adapters import adapters
from exo.networking.address_rule import IPAddress, IPNetwork, own_addresses, parse_address
from exo.system_figures import host_name

_REFRESH_S = 10.0
# what containers and virtual machines call the machine that they run on …
_FROM_CONTAINERS = frozenset({"host.docker.internal", "host.containers.internal", "host.lima.internal"})
# … and what the networks that they are on are called there, by Docker, Podman, containerd, LXD, libvirt, Lima and macOS
_CONTAINER_ADAPTERS = (
    "docker", "br-", "podman", "cni", "nerdctl", "lxcbr", "lxdbr", "virbr", "lima", "vmnet", "bridge1"
)


class HostRule:
  """`names` beside localhost and this machine's own; `bound` is where the API listens."""
  def __init__(self, names: Iterable[str], bound: str) -> None:
    own = {"localhost", host_name(), *names}
    address = parse_address(bound)
    if address is None:
      own.add(bound)
    if short := host_name().partition(".")[0].lower():
      own.add(f"{short}.local")
    self._names = frozenset(name.lower().strip("[]").rstrip(".") for name in own if name)
    self._own: frozenset[IPAddress] = frozenset()
    self._containers: tuple[IPNetwork, ...] = ()
    self._looked_at = float("-inf")

  def is_own(self, address: IPAddress) -> bool:
    """Whether it is one of this machine's addresses."""
    if address.is_loopback or address in self._own:
      return True
    self._look()
    return address in self._own

  def allows(self, header: str, peer: IPAddress | None) -> bool:
    """A Host header of a client at `peer`. An address is no name that somebody could have pointed here."""
    host = host_of(header)
    if host in self._names or host.endswith(".localhost") or parse_address(host) is not None:
      return True
    return host in _FROM_CONTAINERS and peer is not None and (self.is_own(peer) or self._is_container(peer))

  def _is_container(self, address: IPAddress) -> bool:
    self._look()
    return any(address.version == network.version and address in network for network in self._containers)

  def _look(self) -> None:
    now = time.monotonic()
    if now - self._looked_at > _REFRESH_S:
      self._looked_at, self._own, self._containers = now, own_addresses(), _container_networks()


def _container_networks() -> tuple[IPNetwork, ...]:
  networks = (
      ipaddress.ip_network(f"{host}/{prefix}", strict=False) for adapter in adapters()
      if adapter.name.startswith(_CONTAINER_ADAPTERS) for host, prefix in (*adapter.ipv4, *adapter.ipv6)
  )
  return tuple(network for network in networks if network.prefixlen)


def host_of(header: str) -> str:
  """"[::1]:80" as "::1", "Name.:80" as "name"."""
  header = header.strip().lower()
  if header.startswith("["):
    address, _, port = header[1:].partition("]")
    return address if not port or port.startswith(":") else header
  return header.rpartition(":")[0].rstrip(".") if header.count(":") == 1 else header.rstrip(".")
