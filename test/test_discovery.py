"""Finding nodes: by UDP on this machine, and by a file."""

import asyncio
import json
import socket
from pathlib import Path

import pytest

from exo.errors import ConfigError, ProtocolError
from exo.networking.manual import manual_discovery
from exo.networking.manual.manual_discovery import ManualDiscovery
from exo.networking.manual.network_config import read_network_config
from exo.networking.mesh import PeerCandidate
from exo.networking.peer_messages import Hello
from exo.networking.udp.beacon import MAX_BYTES, decode_beacon, encode_beacon
from exo.networking.udp.interfaces import interface_kind, list_interfaces
from exo.networking.udp.udp_discovery import UdpDiscovery
from exo.topology.device_capabilities import DeviceCapabilities
from test.support.nodes import free_port
from test.support.workers import dummy_offers


def hello(node_id: str, port: int) -> Hello:
  return Hello(node_id, 7, port, DeviceCapabilities("Model", "Chip", 1000), dummy_offers(1000), "1")


async def found_by(discoveries: dict[str, UdpDiscovery], seconds: float) -> dict[str, set[tuple[str, int]]]:
  """Who was offered whom."""
  offers: dict[str, set[tuple[str, int]]] = {node_id: set() for node_id in discoveries}
  for i, (node_id, discovery) in enumerate(discoveries.items()):
    await discovery.start(hello(node_id, 50000 + i), lambda c, n=node_id: offers[n].add((c.node_id, c.port)))
  await asyncio.sleep(seconds)
  for discovery in discoveries.values():
    await discovery.stop()
  return offers


def test_three_nodes_of_one_machine_find_each_other() -> None:
  port = free_port(socket.SOCK_DGRAM)
  offers = asyncio.run(found_by({name: UdpDiscovery(port, port) for name in "abc"}, 1.5))
  everyone = {("a", 50000), ("b", 50001), ("c", 50002)}
  assert offers == {name: {entry for entry in everyone if entry[0] != name} for name in "abc"}


def test_filters() -> None:
  port = free_port(socket.SOCK_DGRAM)
  offers = asyncio.run(
      found_by({
          "a": UdpDiscovery(port, port, node_ids=("b", )), "b": UdpDiscovery(port, port),
          "c": UdpDiscovery(port, port, interface_types=("thunderbolt", ))
      }, 1.5)
  )
  assert {name for name, _ in offers["a"]} == {"b"}
  assert offers["c"] == set()


def test_rubbish_on_the_port_is_ignored() -> None:
  async def scenario() -> set[tuple[str, int]]:
    port = free_port(socket.SOCK_DGRAM)
    seen: set[tuple[str, int]] = set()
    discovery = UdpDiscovery(port, port)
    await discovery.start(hello("a", 50000), lambda c: seen.add((c.node_id, c.port)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
      for data in (
          b"", b"\xff" * 100, b"{}", b"[" * 1000, b'{"type":"discovery","node_id":"x","grpc_port":22}',
          b'{"type":"discovery","node_id":"x","grpc_port":"50000"}', b"x" * 5000
      ):
        sock.sendto(data, ("127.0.0.1", port))
      sock.sendto(b'{"type":"discovery","node_id":"good","grpc_port":50009}', ("127.0.0.1", port))
    await asyncio.sleep(0.5)
    await discovery.stop()
    return seen

  assert asyncio.run(scenario()) == {("good", 50009)}


def test_beacons_round_trip_and_are_small() -> None:
  data = encode_beacon(hello("a" * 64, 50000), interface_name="eth0", interface_type="ethernet", priority=4, reply=True)
  assert len(data) < MAX_BYTES
  beacon = decode_beacon(data)
  assert (beacon.node_id, beacon.grpc_port, beacon.incarnation, beacon.reply) == ("a" * 64, 50000, 7, True)
  assert json.loads(data)["device_capabilities"]["memory"] == 1000
  with pytest.raises(ProtocolError):
    decode_beacon(b"x" * (MAX_BYTES + 1))


def test_interfaces_of_this_machine_and_their_kinds() -> None:
  assert any(interface.kind == "loopback" for interface in list_interfaces())
  kinds = {
      "eth0": "ethernet", "enp3s0": "ethernet", "wlan0": "wifi", "wlp2s0": "wifi", "docker0": "virtual",
      "veth12": "virtual", "tun0": "vpn", "tailscale0": "vpn", "lo": "loopback", "thunderbolt0": "thunderbolt"
  }
  assert {name: interface_kind(name) for name in kinds} == kinds


GOOD = {
    "peers": {
        "a": {"address": "127.0.0.1", "port": 50000},
        "b": {"address": "10.0.0.2", "port": 50001, "device_capabilities": {"model": "x"}}
    }
}


def test_manual_discovery_offers_the_others_and_follows_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(manual_discovery, "REREAD_S", 0.1)
  monkeypatch.setattr(manual_discovery, "_OFFER_S", 0.05)
  path = tmp_path / "config.json"

  async def scenario() -> list[set[tuple[str, int]]]:
    path.write_text(json.dumps(GOOD))
    seen: set[tuple[str, int]] = set()

    def offer(candidate: PeerCandidate) -> None:
      seen.add((candidate.node_id, candidate.port))

    discovery, snapshots = ManualDiscovery(path), []
    await discovery.start(hello("a", 50000), offer)
    for text in (json.dumps(GOOD), "{broken", json.dumps({"peers": {"c": {"address": "h", "port": 5}}})):
      path.write_text(text)
      await asyncio.sleep(0.4)
      seen.clear()
      await asyncio.sleep(0.2)
      snapshots.append(set(seen))
    await discovery.stop()
    return snapshots

  assert asyncio.run(scenario()) == [{("b", 50001)}, {("b", 50001)}, {("c", 5)}]


def peer_with(capabilities: str) -> str:
  return '{"peers": {"a": {"address": "x", "port": 5,\n\n"device_capabilities": ' + capabilities + "}}}"


@pytest.mark.parametrize(("text", "reason"), [
    ('{"peers": {\n"a": {"address": "x", "port": 1},,\n}}', "line 2, column"),
    ("[]", '"peers" must be an object'),
    ('{"peers": {"a": 5}}', "peers.a must be an object"),
    ('{"peers": {"a": {"port": 5}}}', "peers.a.address must be a host name"),
    ('{"peers": {"a": {"address": "x", "port": "5"}}}', "peers.a.port must be a number"),
    ('{"peers": {"a": {"address": "x", "port": 70000}}}', "peers.a.port must be a number"),
    ('{"peers": {"a": {"address": "x", "port": 5},\n "b": {\n"address": "x",\n"port": 0}}}', "line 4: peers.b.port"),
    (peer_with("5"), "line 3: peers.a.device_capabilities must be an object"),
    (peer_with('{"chip": 1}'), "peers.a.device_capabilities.chip must be a text"),
    (peer_with('{"memory":\n "8 GB"}'), "line 3: peers.a.device_capabilities.memory must be a number of MB"),
    (peer_with('{"flops":\n\n{"int8": -1}}'), "line 5: peers.a.device_capabilities.flops.int8 must be a number"),
    (peer_with('{"flops": 3}'), "peers.a.device_capabilities.flops must be an object"),
])
def test_a_wrong_file_is_named_with_line_or_key(tmp_path: Path, text: str, reason: str) -> None:
  path = tmp_path / "config.json"
  path.write_text(text)
  with pytest.raises(ConfigError, match="config.json") as caught:
    read_network_config(path)
  assert reason in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
  with pytest.raises(ConfigError, match="No such file"):
    read_network_config(tmp_path / "nothing.json")
