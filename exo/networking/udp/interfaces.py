"""The network interfaces of this machine with their real netmasks and kinds."""

from __future__ import annotations

import ipaddress
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from exo.networking.adapters import adapters

# kind by interface name; the first match counts. A lower place in PRIORITIES is a better link.
_KINDS = (
    ("loopback", re.compile(r"^lo\d*$")),
    ("virtual", re.compile(r"^(veth|docker|br-|virbr|vmnet|vboxnet|cni|flannel|kube|bridge|podman|lxc|anpi|gif|stf)")),
    ("vpn", re.compile(r"^(tun|tap|utun|wg|ppp|ipsec|tailscale|zt)")),
    ("thunderbolt", re.compile(r"^(thunderbolt|tb)\d*")),
    ("wifi", re.compile(r"^(wl|wifi|ath|awdl|llw)")),
    ("ethernet", re.compile(r"^(eth|en|em|eno|ens|enp)")),
)
# macOS's own business: links to phones and screens, tunnels to nowhere
_NO_IPV6 = re.compile(r"^(awdl|llw|anpi|utun|gif|stf|lo)")
BEACON_GROUP = "ff12::6578:6f"  # transient, link-local; "exo"
PRIORITIES = {"thunderbolt": 5, "ethernet": 4, "wifi": 3, "other": 2, "loopback": 2, "vpn": 1, "virtual": 0}


@dataclass(frozen=True, slots=True)
class Interface:
  """One address of an interface, whose beacons go to `broadcast`; of IPv6 its link-local one, if it has one.

  `index` is the interface's number, for IPv6 alone.
  """
  name: str
  kind: str
  address: str
  broadcast: str
  index: int = 0

  @property
  def is_ipv6(self) -> bool:
    return ":" in self.address

  @property
  def priority(self) -> int:
    return PRIORITIES[self.kind]


def interface_kind(name: str) -> str:
  """thunderbolt, ethernet, wifi, vpn, virtual, loopback or other, by the conventions of Linux and macOS."""
  for kind, pattern in _KINDS:
    if pattern.match(name):
      if kind == "ethernet" and sys.platform == "linux" and _is_wireless(name):
        return "wifi"
      return kind
  return "other"


def _is_wireless(name: str) -> bool:
  try:
    return Path(f"/sys/class/net/{name}/wireless").exists()
  except OSError:  # a /sys that is closed
    return False


def list_interfaces() -> list[Interface]:
  """Every IPv4 address of this machine and one IPv6 address of each interface, best interfaces first."""
  found = []
  for adapter in adapters():
    for address, prefix in adapter.ipv4:
      network = ipaddress.IPv4Network(f"{address}/{prefix}", strict=False)
      found.append(Interface(adapter.name, interface_kind(adapter.name), address, str(network.broadcast_address)))
    ipv6 = sorted((address for address, _ in adapter.ipv6), key=lambda a: not a.startswith("fe80"))
    if ipv6 and adapter.index and not _NO_IPV6.match(adapter.name):
      found.append(Interface(adapter.name, interface_kind(adapter.name), ipv6[0], BEACON_GROUP, adapter.index))
  return sorted(found, key=lambda interface: (-interface.priority, interface.name, interface.address))
