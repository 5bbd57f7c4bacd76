"""The sockets of UDP discovery: who listens for beacons, from where they leave, and where they go."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Any

from exo.networking.udp.interfaces import BEACON_GROUP, Interface


def listener(port: int, family: int = socket.AF_INET) -> socket.socket:
  """On all addresses of a family, at a port that other nodes of this machine may share. Raises `OSError`."""
  sock = socket.socket(family, socket.SOCK_DGRAM)
  try:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "SO_REUSEPORT"):
      sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
      sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.setblocking(False)
    sock.bind(("", port))
  except OSError:
    sock.close()
    raise
  return sock


def hear_group(sock: socket.socket, interface: Interface) -> None:
  """Have an IPv6 listener get what is sent to the beacons' group on this interface."""
  member = socket.inet_pton(socket.AF_INET6, BEACON_GROUP) + interface.index.to_bytes(4, sys.byteorder)
  with contextlib.suppress(OSError):  # it does already, or the interface is gone again
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)


def sender(interface: Interface) -> socket.socket:
  """From which beacons leave on one interface, and to which answers come. Raises `OSError`."""
  sock = socket.socket(socket.AF_INET6 if interface.is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
  try:
    sock.setblocking(False)
    if interface.is_ipv6:
      sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface.index)
      sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
      sock.bind((interface.address, 0, 0, interface.index))
    else:
      sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
      sock.bind((interface.address, 0))
  except OSError:
    sock.close()
    raise
  return sock


def targets(interface: Interface, port: int) -> list[tuple[Any, ...]]:
  """Where beacons of this interface go."""
  if interface.is_ipv6:
    return [(BEACON_GROUP, port, 0, interface.index)]
  if interface.kind == "loopback":
    # Linux hands a broadcast on the loopback network to every socket of the machine
    return [(interface.broadcast if sys.platform == "linux" else "127.0.0.1", port)]
  return [(host, port) for host in {interface.broadcast, "255.255.255.255"}]


def host_of(source: tuple[Any, ...]) -> str:
  """Whom a datagram came from, as an address to dial: a link-local one with its zone."""
  host = str(source[0])
  if len(source) == 4 and source[3] and "%" not in host:
    return f"{host}%{source[3]}"
  return host
