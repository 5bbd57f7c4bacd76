"""Discovery by UDP on every interface: broadcast over IPv4, a multicast group over IPv6.

All nodes of a machine share the listening port. Each interface also has a socket of its own, from which beacons leave
and to which answers come, so that two nodes on one machine and nodes that hear only one way find each other.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from exo.errors import ConfigError, ProtocolError
from exo.log import log
from exo.networking.address_rule import AddressRule
from exo.networking.discovery import Discovery
from exo.networking.mesh import PeerCandidate
from exo.networking.peer_messages import Hello
from exo.networking.refusals import Refusals
from exo.networking.token_bucket import Buckets
from exo.networking.udp import sockets
from exo.networking.udp.beacon import Beacon, decode_beacon, encode_beacon
from exo.networking.udp.guard import DatagramGuard
from exo.networking.udp.interfaces import Interface, list_interfaces
from exo.networking.udp.seal import ReplayedDatagramError, WrongClockError
from exo.tasks import TaskOwner

BEACON_S = 2.5
# a new node is heard of at once, even if its first datagram is lost
_FIRST_BEACONS_S = (0.0, 0.25, 0.75)
_ANSWER_EVERY_S = 1.0
_MAX_SEEN = 1024
# answers to one address, which a datagram may have been forged to bear: enough for the nodes of one machine
_ANSWERS_RATE, _ANSWERS_BURST = 4.0, 32.0
Offer = Callable[[PeerCandidate], None]


class UdpDiscovery(Discovery):
  def __init__(
      self,
      listen_port: int,
      broadcast_port: int,
      node_ids: tuple[str, ...] = (),
      interface_types: tuple[str, ...] = (),
      debug: int = 0,
      guard: DatagramGuard | None = None
  ) -> None:
    self._listen_port, self._broadcast_port = listen_port, broadcast_port
    self._node_ids, self._interface_types, self._debug = node_ids, interface_types, debug
    self._guard = guard or DatagramGuard(None, AddressRule(restricted=True))
    self._tasks = TaskOwner("udp discovery")
    self._senders: dict[Interface, asyncio.DatagramTransport] = {}
    self._listeners: list[asyncio.DatagramTransport] = []
    self._group_listener: socket.socket | None = None
    self._answered: dict[str, float] = {}
    self._answers = Buckets(_ANSWERS_RATE, _ANSWERS_BURST, _MAX_SEEN)
    self._refusals = Refusals()

  async def start(self, local: Hello, offer: Offer) -> None:
    self._local, self._offer = local, offer
    loop = asyncio.get_running_loop()
    try:
      listeners = [sockets.listener(self._listen_port)]
    except OSError as error:
      raise ConfigError(
          f"UDP port {self._listen_port} cannot be listened on ({error.strerror}): choose another --listen-port"
      ) from error
    try:
      self._group_listener = sockets.listener(self._listen_port, socket.AF_INET6)
      listeners.append(self._group_listener)
    except OSError as error:  # a machine without IPv6
      log(1, "no beacons over IPv6: %s", error)
    for listener in listeners:
      transport, _ = await loop.create_datagram_endpoint(lambda: _Receiver(self._received), sock=listener)
      self._listeners.append(transport)
    self._tasks.spawn(self._announce(), "beacons")

  def refusals(self) -> Sequence[str]:
    return self._refusals.texts()

  def problems(self) -> Sequence[str]:
    return self._refusals.problems()

  async def stop(self) -> None:
    await self._tasks.close()
    for transport in (*self._senders.values(), *self._listeners):
      transport.close()
    self._senders.clear()

  async def _announce(self) -> None:
    await self._update_interfaces()
    for pause_s in _FIRST_BEACONS_S:
      await asyncio.sleep(pause_s)
      self._broadcast(reply=True)
    while True:
      await asyncio.sleep(BEACON_S)
      await self._update_interfaces()
      self._broadcast(reply=False)

  async def _update_interfaces(self) -> None:
    """Follow addresses that come and go while the node runs."""
    wanted = [
        i for i in await asyncio.to_thread(list_interfaces)
        if not self._interface_types or i.kind in self._interface_types
    ]
    for gone in set(self._senders) - set(wanted):
      self._senders.pop(gone).close()
    for interface in wanted:
      if interface not in self._senders:
        try:
          sender = sockets.sender(interface)
        except OSError as error:
          log(2, "no beacons from %s (%s): %s", interface.name, interface.address, error)
          continue
        if interface.is_ipv6 and self._group_listener is not None:
          sockets.hear_group(self._group_listener, interface)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Receiver(self._received), sock=sender
        )
        self._senders[interface] = transport

  def _beacon(self, interface: Interface, *, reply: bool) -> bytes:
    return self._guard.seal(
        encode_beacon(
            self._local,
            interface_name=interface.name,
            interface_type=interface.kind,
            priority=interface.priority,
            reply=reply
        )
    )

  def _broadcast(self, *, reply: bool) -> None:
    for interface, transport in self._senders.items():
      data = self._beacon(interface, reply=reply)
      for target in sockets.targets(interface, self._broadcast_port):
        transport.sendto(data, target)

  def _received(self, transport: asyncio.DatagramTransport, data: bytes, source: tuple[Any, ...]) -> None:
    host = sockets.host_of(source)
    try:
      body = self._guard.open(data, host)
      if body is None:
        return
    except ReplayedDatagramError:
      return
    except WrongClockError as error:
      self._refusals.note(f"ignored a node at {host}: {error}", about=f"clock {host}", wrong=True, loud=True)
      return
    except ProtocolError as error:
      self._refusals.note(f"ignored a datagram from {host}: {error}", wrong=True)
      return
    try:
      beacon = decode_beacon(body)
    except ProtocolError as error:
      self._refusals.note(f"ignored a datagram from {host}: {error}")
      return
    if beacon.node_id == self._local.node_id:
      return
    if self._node_ids and beacon.node_id not in self._node_ids:
      self._refusals.note(f"ignored {beacon.node_id}: not in --node-id-filter")
      return
    if self._interface_types and beacon.interface_type not in self._interface_types:
      self._refusals.note(f"ignored {beacon.node_id} on {beacon.interface_type}: not in --interface-type-filter")
      return
    if self._debug:
      log(0, "beacon of %s from %s:%s on %s", beacon.node_id, host, source[1], beacon.interface_name)
    self._offer(
        PeerCandidate(
            beacon.node_id, host, beacon.grpc_port, beacon.priority, (beacon.interface_name
                                                                      or beacon.interface_type)[:40]
        )
    )
    if beacon.reply:
      self._answer(beacon, source)

  def _answer(self, beacon: Beacon, source: tuple[Any, ...]) -> None:
    """Tell a new node of this one at once, where its beacon came from; at most once a second each."""
    now = time.monotonic()
    if now - self._answered.get(beacon.node_id, -_ANSWER_EVERY_S) < _ANSWER_EVERY_S:
      return
    if not self._answers.take(source[0], now):
      return
    if len(self._answered) >= _MAX_SEEN:
      self._answered.clear()
    self._answered[beacon.node_id] = now
    for interface, transport in self._senders.items():
      if len(source) == 4:
        near = interface.is_ipv6 and source[3] in (0, interface.index)
      else:
        near = not interface.is_ipv6 and (interface.kind == "loopback") == source[0].startswith("127.")
      if near:
        transport.sendto(self._beacon(interface, reply=False), source)


class _Receiver(asyncio.DatagramProtocol):
  def __init__(self, received: Callable[[asyncio.DatagramTransport, bytes, tuple[Any, ...]], None]) -> None:
    self._received = received

  def connection_made(self, transport: asyncio.BaseTransport) -> None:
    assert isinstance(transport, asyncio.DatagramTransport)
    self._transport = transport

  def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
    self._received(self._transport, data, addr)

  def error_received(self, exc: Exception) -> None:
    log(3, "udp: %s", exc)
