"""Faults of the network, from the fault matrix: hosts in namespaces whose packets are dropped, and a slow proxy."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exo.inference.dummy.engine import SLOW
from test.support.far_rings import two_over_a_proxy
from test.support.namespaces import Hosts, hosts
from test.support.nodes import NodeProcess, free_port, ring, wait_until
from test.support.streams import stream

DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy")
HELLO = f"hello{chr(SLOW)}"
LONG = {"max_tokens": 500, "temperature": 1.0, "seed": 1, "logit_bias": {"256": -100}}


@pytest.fixture(scope="module")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> str:
  with ring(tmp_path_factory.mktemp("alone"), 1, *DUMMY) as (node, ):
    return stream(node, HELLO, **LONG).text


@contextmanager
def ring_of_hosts(home: Path, count: int) -> Iterator[tuple[Hosts, list[NodeProcess]]]:
  """One node on each of some hosts, all linked."""
  with hosts(count) as net:
    nodes = [NodeProcess(home / str(i), *DUMMY, node_id=f"node{i}", prefix=net.prefix(i)) for i in range(count)]
    try:
      for i, node in enumerate(nodes):
        net.on(i, node.wait_ready)
      wait_until(lambda: all(len(peers(net, nodes, i)) == count for i in range(count)), 20, "a ring of hosts")
      yield net, nodes
    finally:
      for node in nodes:
        node.stop()


def peers(net: Hosts, nodes: list[NodeProcess], i: int) -> set[str]:
  return net.on(i, nodes[i].peers)


@pytest.mark.network
@pytest.mark.parametrize("ways", ["one way", "two ways"])
def test_fault_4_a_partition_and_its_end(tmp_path: Path, long_text: str, ways: str) -> None:
  with ring_of_hosts(tmp_path, 3) as (net, nodes):

    def part(count: int) -> None:
      if count == 50:
        net.filter(2, *(f"{net.sent_by(i)} drop" for i in (0, 1)))
        if ways == "two ways":
          for i in (0, 1):
            net.filter(i, f"{net.sent_by(2)} drop")

    streamed = net.on(0, lambda: stream(nodes[0], HELLO, part, **LONG))
    assert streamed.text == long_text and len(streamed.resumptions) == 1, streamed
    wait_until(lambda: peers(net, nodes, 0) == peers(net, nodes, 1) == {"node0", "node1"}, 10, "the parting")
    wait_until(lambda: peers(net, nodes, 2) == {"node2"}, 10, "the parting on the other side")
    assert net.on(2, lambda: nodes[2].chat("alone", max_tokens=3)[0]) == 200
    for i in range(3):
      net.filter(i)
    wait_until(lambda: all(len(peers(net, nodes, i)) == 3 for i in range(3)), 12, "the ring to be whole again")
    assert net.on(2, lambda: stream(nodes[2], HELLO, **LONG)).text == long_text


@pytest.mark.network
@pytest.mark.parametrize("percent", [5, 30])
def test_fault_5_lost_datagrams_kill_nobody(tmp_path: Path, long_text: str, percent: int) -> None:
  with ring_of_hosts(tmp_path, 3) as (net, nodes):
    for i in range(3):
      net.filter(i, f"meta l4proto udp numgen random mod 100 < {percent} drop")
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
      assert net.on(0, lambda: stream(nodes[0], HELLO, **LONG)).text == long_text
    for node in nodes:
      assert " left: " not in node.log and "is dead" not in node.log


@pytest.mark.parametrize(
    "how", [{"delay_s": 0.075, "jitter_s": 0.05}, {"bytes_per_s": 125_000.0}], ids=["75±50 ms", "1 Mbit/s"]
)
def test_fault_6_a_slow_link(tmp_path: Path, long_text: str, how: dict[str, float]) -> None:
  with two_over_a_proxy(tmp_path, *DUMMY, **how) as (nodes, _):
    fields = LONG | {"max_tokens": 60}
    for node in nodes:
      streamed = stream(node, HELLO, **fields)
      assert streamed.text == long_text[:len(streamed.text)] and len(streamed.text) > 50 and not streamed.resumptions
    for node in nodes:
      assert " left: " not in node.log and "is dead" not in node.log


def test_fault_9_a_half_open_connection(tmp_path: Path, long_text: str) -> None:
  """Nothing comes through any more and nobody says so: noticed by missing heartbeats, and the stream goes on."""
  with two_over_a_proxy(tmp_path, *DUMMY) as (nodes, proxy):
    streamed = stream(nodes[0], HELLO, lambda count: proxy.half_open() if count == 50 else None, **LONG)
    assert streamed.text == long_text and len(streamed.resumptions) == 1


def test_fault_9_only_the_data_connection_is_half_open(tmp_path: Path, long_text: str) -> None:
  """Heartbeats still come, and say that more was sent than arrives: the per-hop deadline."""
  with two_over_a_proxy(tmp_path, *DUMMY) as (nodes, proxy):
    streamed = stream(nodes[0], HELLO, lambda count: proxy.half_open(0) if count == 50 else None, **LONG)
    assert streamed.text == long_text and len(streamed.resumptions) == 1
    wait_until(lambda: any("does not arrive" in node.log for node in nodes), 15, "a line of the log")


@pytest.mark.slow
def test_fault_7_a_stage_that_stands_still_for_half_a_minute(tmp_path: Path, long_text: str) -> None:
  """It is evicted, the stream goes on without it, and when it returns it is stale and joins anew."""
  port = str(free_port(socket.SOCK_DGRAM))
  with ring(tmp_path, 3, *DUMMY, "--listen-port", port, "--broadcast-port", port) as nodes:
    assert nodes[0].chat("hi", max_tokens=2)[0] == 200
    streamed = stream(
        nodes[0], HELLO, lambda count: nodes[2].process.send_signal(signal.SIGSTOP) if count == 50 else None, **LONG
    )
    assert streamed.text == long_text and len(streamed.resumptions) == 1
    assert nodes[0].peers() == {"node0", "node1"}
    time.sleep(30)
    nodes[2].process.send_signal(signal.SIGCONT)
    wait_until(lambda: all(len(node.peers()) == 3 for node in nodes), 15, "the return")
    for node in nodes:
      assert stream(node, HELLO, **LONG).text == long_text


@pytest.mark.network
def test_hosts_without_ipv4_find_each_other_by_ipv6(tmp_path: Path, long_text: str) -> None:
  """Beacons to the multicast group, links to link-local addresses with their zone."""
  with hosts(2) as net:
    for i in range(2):
      net.filter(i, "ip saddr 10.0.0.0/8 drop")
    nodes = [NodeProcess(tmp_path / str(i), *DUMMY, node_id=f"node{i}", prefix=net.prefix(i)) for i in range(2)]
    try:
      for i, node in enumerate(nodes):
        net.on(i, node.wait_ready)
      wait_until(lambda: all(peers(net, nodes, i) == {"node0", "node1"} for i in range(2)), 20, "a ring over IPv6")
      address = net.on(0, lambda: nodes[0].get("/v1/topology")[1]["nodes"]["node1"]["address"])
      assert address.startswith("[fe80::") and "%" in address
      streamed = net.on(0, lambda: stream(nodes[0], HELLO, **LONG | {"max_tokens": 40}))
      assert streamed.text == long_text[:len(streamed.text)] and len(streamed.text) > 30
    finally:
      for node in nodes:
        node.stop()
