"""Requirements 1 to 5 of the ring: who may join, what a flood can do, whose frames and tokens count."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from cryptography import x509

from exo.errors import ConfigError, ProtocolError
from exo.inference.engine import BatchEntry, LogitsOf
from exo.inference.sampling import SamplingParams, TokenLogprob
from exo.networking import messages as m
from exo.networking.address_rule import AddressRule
from exo.networking.cluster_key import ClusterKeyring, derive, parse_key_texts, read_key_file, write_key_file
from exo.networking.grpc.grpc_mesh import GrpcMesh
from exo.networking.grpc.stream import METHOD
from exo.networking.grpc.tensor_codec import WireTensor, decode_tensor, encode_tensor
from exo.networking.mesh import PeerCandidate
from exo.networking.udp.beacon import MAX_BYTES, decode_beacon, encode_beacon
from exo.networking.udp.guard import MAX_SOURCES, SOURCE_BURST, DatagramGuard
from exo.networking.udp.seal import FRESH_S, OVERHEAD_BYTES, DatagramSeal, ReplayedDatagramError
from exo.networking.udp.udp_discovery import UdpDiscovery
from exo.orchestration.frame_check import FrameBounds, check_frame
from exo.orchestration.node import Node
from test.support.clusters import KEY, OTHER_KEY, greet, hello, keyring, self_signed
from test.support.local_rings import local_ring, settled, spec, text_of
from test.support.nodes import NodeProcess, free_port, ring
from test.test_mesh import Recorder


def run(scenario, timeout_s: float = 60) -> None:
  asyncio.run(asyncio.wait_for(scenario, timeout_s))


@asynccontextmanager
async def mesh(node_id: str,
               keys: ClusterKeyring | None,
               incarnation: int = 1) -> AsyncIterator[tuple[GrpcMesh, Recorder]]:
  created, recorder = GrpcMesh(hello(node_id, 0, incarnation), "127.0.0.1", 30, keys), Recorder()
  await created.start(recorder)
  try:
    yield created, recorder
  finally:
    await created.stop()


def candidate(of: GrpcMesh) -> PeerCandidate:
  return PeerCandidate(of.hello.node_id, "127.0.0.1", of.hello.port)


# 1: the cluster key


@pytest.mark.parametrize(
    "text", ["short", "x" * 31, "x" * 40 + "\x07", "", "\n", f"{'a' * 32}\n{'b' * 32}\n{'c' * 32}"]
)
def test_01_what_is_no_key_is_refused_without_repeating_it(text: str) -> None:
  with pytest.raises(ConfigError) as caught:
    parse_key_texts(text, "the flag")
  assert "the flag" in str(caught.value) and "xxx" not in str(caught.value)


def test_01_any_32_printable_characters_are_a_key() -> None:
  for text in ("a" * 32, "correct horse battery staple, with spaces and ümlauts", KEY):
    assert parse_key_texts(f"  {text}\n", "x") == (text, )
    assert derive(text) == derive(text)
  one, other = derive(KEY), derive(OTHER_KEY)
  assert one.name != other.name and one.datagram_mac != other.datagram_mac
  assert len({one.datagram_mac, one.datagram_cipher}) == 2
  assert KEY not in repr(one) and one.datagram_mac.hex() not in repr(one)


def test_01_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
  path = tmp_path / "cluster.key"
  write_key_file(path, (KEY, ))
  assert path.stat().st_mode & 0o777 == 0o600 and read_key_file(path) == (KEY, )
  path.chmod(0o644)
  with pytest.raises(ConfigError, match="chmod 600"):
    read_key_file(path)


def test_01_datagrams_are_authenticated_before_they_are_parsed() -> None:
  now = [1000.0]
  ours, theirs = DatagramSeal(keyring(), lambda: now[0]), DatagramSeal(keyring(OTHER_KEY), lambda: now[0])
  receiver = DatagramSeal(keyring(), lambda: now[0])
  body = encode_beacon(hello("secret-node"), interface_name="eth0", interface_type="ethernet", priority=4, reply=True)
  sealed = ours.seal(body)
  assert receiver.open(sealed) == body
  for secret in (b"secret-node", b"Secret model", b"Secret chip", b"50000", b"discovery", KEY.encode()):
    assert secret not in sealed  # who listens learns that there is a node, and no more
  with pytest.raises(ReplayedDatagramError):
    receiver.open(sealed)
  with pytest.raises(ProtocolError, match="another cluster"):
    receiver.open(theirs.seal(body))
  with pytest.raises(ProtocolError, match="not authenticated"):
    receiver.open(body)
  for i in range(len(sealed)):  # version, time, nonce, MAC, text: a changed bit anywhere is noticed
    with pytest.raises(ProtocolError):
      DatagramSeal(keyring(), lambda: now[0]).open(sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1:])
  for length in range(0, len(sealed), 7):
    with pytest.raises(ProtocolError):
      receiver.open(sealed[:length])


@pytest.mark.parametrize("seconds", [-FRESH_S - 1, FRESH_S + 1])
def test_01_stale_datagrams_are_dropped(seconds: float) -> None:
  now = [1000.0]
  sender, receiver = DatagramSeal(keyring(), lambda: now[0]), DatagramSeal(keyring(), lambda: now[0])
  sealed, fresh = sender.seal(b"x"), sender.seal(b"y")
  assert receiver.open(fresh) == b"y"
  now[0] += seconds
  with pytest.raises(ProtocolError, match="clock"):
    receiver.open(sealed)
  now[0] = 1000.0 + FRESH_S - 1
  with pytest.raises(ReplayedDatagramError):  # remembered for as long as it would be fresh
    receiver.open(fresh)


def test_01_the_largest_beacon_fits_into_a_datagram() -> None:
  said = hello("n" * 128, 65535)
  body = encode_beacon(said, interface_name="thunderbolt-bridge", interface_type="thunderbolt", priority=5, reply=False)
  assert len(DatagramSeal(keyring()).seal(body)) <= MAX_BYTES
  assert len(body) + OVERHEAD_BYTES <= MAX_BYTES


def test_01_discovery_hears_only_those_with_the_key() -> None:
  async def scenario() -> None:
    port = free_port(socket.SOCK_DGRAM)
    heard: dict[str, set[str]] = {name: set() for name in ("a", "b", "stranger", "open")}
    keys = {"a": keyring(), "b": keyring(), "stranger": keyring(OTHER_KEY), "open": None}
    running = []
    for i, name in enumerate(heard):
      seal = None if keys[name] is None else DatagramSeal(keys[name])
      discovery = UdpDiscovery(port, port, guard=DatagramGuard(seal, AddressRule(seal is None)))
      await discovery.start(hello(name, 50000 + i), lambda c, n=name: heard[n].add(c.node_id))
      running.append(discovery)
    await asyncio.sleep(1.5)
    for discovery in running:
      await discovery.stop()
    assert heard == {"a": {"b"}, "b": {"a"}, "stranger": set(), "open": set()}

  run(scenario())


@pytest.mark.parametrize(("dialer", "dialed"), [("ours", "ours"), ("ours", "other"), ("other", "ours"),
                                                ("ours", "none"), ("none", "ours")])
def test_01_links_need_the_key_on_both_sides(dialer: str, dialed: str) -> None:
  rings = {"ours": keyring(), "other": keyring(OTHER_KEY), "none": None}

  async def scenario() -> None:
    async with mesh("a", rings[dialer]) as (a, a_heard), mesh("b", rings[dialed]) as (b, b_heard):
      a.offer(candidate(b))
      if dialer == dialed:
        await a_heard.until(lambda: a_heard.events == ["+b"])
        await b_heard.until(lambda: b_heard.events == ["+a"])
      else:
        await asyncio.sleep(1.5)
        assert not a_heard.events and not b_heard.events and not a.peers() and not b.peers()

  run(scenario())


def test_01_every_rpc_without_the_key_is_refused() -> None:
  """A stranger with gRPC in hand: in the clear, with TLS but no certificate, and with one of its own."""
  async def scenario() -> None:
    private, certificate = self_signed()
    async with mesh("a", keyring()) as (a, heard):
      address = f"127.0.0.1:{a.hello.port}"
      server_pem = await asyncio.to_thread(_server_certificate, a.hello.port)
      options = [("grpc.ssl_target_name_override", "node.exo")]
      channels = [grpc.aio.insecure_channel(address)]
      for roots in (None, server_pem, certificate):
        for pair in ((None, None), (private, certificate)):
          channels.append(grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots, *pair), options=options))
      for channel in channels:
        assert await greet(channel, hello("intruder")) is None
      assert not heard.events and not a.peers()
    # what the handshake showed of the node: nothing but that it is one
    shown = x509.load_pem_x509_certificate(server_pem)
    assert shown.subject.rfc4514_string() == "CN=exo node"
    assert {e.oid.dotted_string for e in shown.extensions} == {"2.5.29.19", "2.5.29.17", "2.5.29.37", "2.5.29.35"}

  run(scenario())


def _server_certificate(port: int) -> bytes:
  import ssl
  context = ssl.create_default_context()
  context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
  context.set_alpn_protocols(["h2"])
  with socket.create_connection(("127.0.0.1", port), 5) as raw, context.wrap_socket(raw) as tls:
    der = tls.getpeercert(binary_form=True)
  assert der
  return ssl.DER_cert_to_PEM_cert(der).encode()


def test_01_a_stranger_can_neither_join_nor_read_nor_send(tmp_path: Path) -> None:
  """Real nodes: two with a key, one without and one with another on the same ports, and raw attempts on their ports."""
  base = ("--inference-engine", "dummy", "--default-model", "dummy")
  with ring(tmp_path / "ours", 2, *base, "--cluster-key", KEY) as nodes:
    for node in nodes:
      node.wait_said("beacons on port ")
      node.wait_said("ring    0.0.0.0:")
    port = nodes[0].log.split("beacons on port ")[1].split()[0]
    udp = ("--listen-port", port, "--broadcast-port", port)
    grpc_ports = [int(n.log.split("ring    0.0.0.0:")[1].split()[0]) for n in nodes]
    strangers = [
        NodeProcess(tmp_path / "open", *base, *udp, node_id="stranger"),
        NodeProcess(
            tmp_path / "other",
            *base,
            *udp,
            "--peers",
            f"127.0.0.1:{grpc_ports[0]}",
            node_id="node1",  # an id of the ring
            env={"EXO_CLUSTER_KEY": OTHER_KEY}
        ),
    ]
    try:
      for stranger in strangers:
        stranger.wait_ready()
      time.sleep(6)
      for stranger in strangers:
        assert stranger.peers() == {stranger.node_id}
      assert nodes[0].peers() == nodes[1].peers() == {"node0", "node1"}

      async def attack() -> None:
        for grpc_port in grpc_ports:
          channel = grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}")
          assert await greet(channel, hello("intruder")) is None

      run(attack())
      status, answer = nodes[0].chat("hello", max_tokens=5)
      assert status == 200 and answer["usage"]["completion_tokens"] == 5
    finally:
      for stranger in strangers:
        stranger.stop()
    assert KEY not in "".join(node.log for node in nodes)
    nodes[0].wait_said("not authenticated by a cluster key")
    assert "its beacon" not in nodes[0].log
    assert "WARNING: no cluster key" in strangers[0].log and "WARNING: no cluster key" not in nodes[0].log


def test_01_keys_change_without_stopping(tmp_path: Path) -> None:
  """Each machine adds, uses and drops in its turn; at every step everyone can link with everyone."""
  async def linked(one: ClusterKeyring, other: ClusterKeyring) -> bool:
    async with mesh("a", one) as (a, heard), mesh("b", other) as (b, _):
      a.offer(candidate(b))
      try:
        await heard.until(lambda: heard.events, 1.2)
      except TimeoutError:
        return False
      return True

  async def scenario() -> None:
    before, added, used, after = (KEY, ), (KEY, OTHER_KEY), (OTHER_KEY, KEY), (OTHER_KEY, )
    for mine, others in ((before, added), (added, before), (added, used), (used, added), (used, after), (after, used)):
      assert await linked(keyring(*mine), keyring(*others)), (mine, others)
      opened = DatagramSeal(keyring(*others)).open(DatagramSeal(keyring(*mine)).seal(b"x"))
      assert opened == b"x"
    assert not await linked(keyring(*before), keyring(*after))

  run(scenario())


def test_01_a_running_node_follows_its_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr("exo.networking.cluster_key._LOOK_EVERY_S", 0.0)
  path = tmp_path / "cluster.key"
  write_key_file(path, (KEY, ))
  keys = ClusterKeyring(read_key_file(path), path)

  async def scenario() -> None:
    async with mesh("a", keys) as (a, heard), mesh("b", keyring()) as (b, _), mesh("c", keyring(OTHER_KEY)) as (c, _):
      b.offer(candidate(a))
      await heard.until(lambda: heard.events == ["+b"])
      write_key_file(path, (OTHER_KEY, KEY))
      c.offer(candidate(a))
      await heard.until(lambda: heard.events == ["+b", "+c"])  # the new key is in force, the old link still up
      path.write_text("broken")
      assert [k.name for k in keys.accepted] == [derive(OTHER_KEY).name, derive(KEY).name]

  run(scenario())


NEAR = ["127.0.0.1", "10.1.2.3", "172.16.0.1", "172.31.255.1", "192.168.7.7", "169.254.3.4", "100.64.0.1",
        "100.127.255.254", "::1", "fe80::1%eth0", "fd00::1", "::ffff:192.168.1.1", "[fd00::1]"]  # yapf: disable
FAR = ["8.8.8.8", "172.32.0.1", "100.128.0.1", "192.169.0.1", "1.1.1.1", "2001:4860:4860::8888", "::ffff:8.8.8.8",
       "224.0.0.1", "0.0.0.0", "example.org", "", "x" * 300]  # yapf: disable


def test_01_without_a_key_only_near_and_configured_addresses_count() -> None:
  rule = AddressRule(restricted=True)
  assert all(rule.allows(host) for host in NEAR)
  assert not any(rule.allows(host) for host in FAR)
  rule.configure("8.8.8.8")
  assert rule.allows("8.8.8.8") and not rule.allows("8.8.4.4")
  assert all(AddressRule(restricted=False).allows(host) for host in NEAR + FAR)


def test_01_without_a_key_far_addresses_are_neither_dialed_nor_heard() -> None:
  async def scenario() -> None:
    async with mesh("a", None) as (a, _):
      a.offer(PeerCandidate("far", "203.0.113.9", 50000))
      assert not a._book.nodes
      a.offer(PeerCandidate("named", "203.0.113.9", 50000, configured=True))
      assert set(a._book.nodes) == {"named"}
    guard = DatagramGuard(None, AddressRule(restricted=True))
    with pytest.raises(ProtocolError, match="this network"):
      guard.open(b"{}", "203.0.113.10")
    assert guard.open(b"{}", "192.168.0.9") == b"{}"

  run(scenario())


# 2: datagrams


def test_02_datagrams_are_small_and_strict() -> None:
  guard = DatagramGuard(None, AddressRule(restricted=True))
  with pytest.raises(ProtocolError, match="1400"):
    guard.open(b"x" * (MAX_BYTES + 1), "127.0.0.1")
  for port in (0, 22, 80, 1023, 65536, -1):  # never a port under 1024
    with pytest.raises(ProtocolError):
      decode_beacon(b'{"type":"discovery","node_id":"x","grpc_port":%d}' % port)


def test_02_one_source_is_limited_and_the_table_is_bounded() -> None:
  now = [0.0]
  guard = DatagramGuard(None, AddressRule(restricted=True), lambda: now[0])
  passed = sum(guard.open(b"{}", "10.0.0.1") is not None for _ in range(10_000))
  assert passed == SOURCE_BURST
  now[0] += 1.0
  assert guard.open(b"{}", "10.0.0.2") == b"{}"  # others are still heard
  for i in range(50_000):
    now[0] += 1e-4
    guard.open(b"{}", f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}")
  assert guard.sources <= MAX_SOURCES and guard.dropped > 40_000
  now[0] += 10
  assert guard.open(b"{}", "10.0.0.1") == b"{}"


def test_02_announced_nodes_are_bounded() -> None:
  async def scenario() -> None:
    async with mesh("a", None) as (a, _):
      for i in range(5000):
        a.offer(PeerCandidate(f"n{i}", "127.0.0.1", 1024 + i))
        a.offer(PeerCandidate("one", "127.0.0.1", 1024 + i))
      assert len(a._book.nodes) <= 256 and all(len(k.candidates) <= 16 for k in a._book.nodes.values())

  run(scenario())


def test_02_a_flood_leaves_the_node_serving(tmp_path: Path) -> None:
  """Tens of thousands of datagrams, garbage and well-formed ones with made-up ids; `scripts/bench_security.py flood`
  measures the rate and the latency."""
  import psutil
  port = free_port(socket.SOCK_DGRAM)
  base = ("--inference-engine", "dummy", "--default-model", "dummy")
  node = NodeProcess(
      tmp_path, *base, "--listen-port", str(port), "--broadcast-port", str(port), node_id="n", env={"DEBUG": "1"}
  ).wait_ready()
  try:
    process = psutil.Process(node.process.pid)
    node.chat("warm", max_tokens=2)
    before, logged = process.memory_info().rss, len(node.log)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
      for i in range(40_000):
        made_up = b'{"type":"discovery","node_id":"made-up-%d","grpc_port":%d}' % (i, 2000 + i % 60000)
        sock.sendto(os.urandom(200) if i % 2 else made_up, ("127.0.0.1", port))
    assert node.chat("hello", max_tokens=5)[0] == 200
    assert node.peers() == {"n"}
    assert process.memory_info().rss - before < 30 * 2**20
    assert len(node.log) - logged < 200_000
  finally:
    assert node.stop() == 0


# 3: two nodes with one id


def test_03_the_incumbent_stays_and_both_addresses_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
  said: list[str] = []
  monkeypatch.setattr("exo.log._sink", said.append)

  async def scenario() -> None:
    async with mesh("a", keyring()) as (a, heard), mesh("b", keyring(), 9) as (b, _), mesh("b", keyring(),
                                                                                           3) as (old, _):
      a.offer(candidate(b))
      await heard.until(lambda: heard.events == ["+b"])
      old.offer(candidate(a))
      await asyncio.sleep(1)
      assert a.peers()["b"].hello.incarnation == 9 and not old.peers()
      incumbent = a.peers()["b"].address
      assert any("call themselves b" in line and incumbent in line and line.count("127.0.0.1:") == 2 for line in said)

  run(scenario())


def test_03_a_restart_replaces_and_a_younger_double_does_not() -> None:
  async def scenario() -> None:
    async with mesh("a", keyring()) as (a, heard):
      async with mesh("b", keyring(), 3) as (b, _), mesh("b", keyring(), 5) as (double, _):
        a.offer(candidate(b))
        await heard.until(lambda: heard.events == ["+b"])
        double.offer(candidate(a))
        await asyncio.sleep(1)
        assert a.peers()["b"].hello.incarnation == 3 and not double.peers()
      async with mesh("b", keyring(), 9) as (new, _):
        new.offer(candidate(a))
        await heard.until(lambda: "b" in a.peers() and a.peers()["b"].hello.incarnation == 9)

  run(scenario())


# 4: frames


def test_04_compressed_and_oversized_messages_are_refused() -> None:
  """Zeros that unpack to far more than was sent, and a message beyond the bound."""
  async def scenario() -> None:
    async with mesh("a", None) as (a, heard):
      for compression, size in ((grpc.Compression.Gzip, 32 * 2**20), (None, 65 * 2**20)):
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{a.hello.port}", options=options) as channel:
          call = channel.stream_stream(METHOD,
                                       )(metadata=(("exo-link", "x" * 16), ), timeout=20, compression=compression)
          with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)) as caught:
            await call.write(bytes(size))
            if await call.read() is grpc.aio.EOF:
              raise asyncio.InvalidStateError(str(await call.code()))
          code = await call.code()
          assert code in (
              grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL
          ), caught.value
      assert not heard.events

  run(scenario())


def _tensor(dtype: str = "float32", shape: tuple[int, ...] = (2, 3), data: bytes = bytes(24)) -> WireTensor:
  return WireTensor(dtype, shape, memoryview(data))


@pytest.mark.parametrize("tensor", [
    _tensor("object"), _tensor("float64", data=bytes(48)), _tensor("U8"), _tensor(shape=()),
    _tensor(shape=(1, 1, 1, 2, 3)), _tensor(shape=(0, 6), data=b""), _tensor(shape=(2, 4)), _tensor(data=bytes(23)),
    _tensor(shape=(2**31, 2**31), data=bytes(24)), _tensor("float32\x00")
])  # yapf: disable
def test_04_tensors_are_checked(tensor: WireTensor) -> None:
  with pytest.raises(ProtocolError):
    decode_tensor(tensor)


def test_04_a_tensor_that_is_right_passes() -> None:
  array = np.arange(6, dtype=np.float16).reshape(2, 3)
  assert np.array_equal(decode_tensor(encode_tensor(array)), array)


def test_04_nothing_is_pickled() -> None:
  from test.support.nodes import ROOT
  for path in (ROOT / "exo").rglob("*.py"):
    source = path.read_text()
    for name in ("pickle", "marshal", "shelve", "allow_pickle=True", "yaml.load", "eval(", "exec("):
      assert f"import {name}" not in source and (name.isidentifier() or f" {name}" not in source), f"{path}: {name}"


BOUNDS = FrameBounds(hidden_size=4, vocab_size=100, max_context=64, max_sequences=2)
REQUEST = m.Request("r", "a", (1, 2), 5, frozenset({2}), SamplingParams())


def frame(**changes: Any) -> m.Frame:
  fields: dict[str, Any] = {
      "plan_id": "p", "epoch": "e", "step": 1,
      "entries": (BatchEntry(1, 0, 2, LogitsOf.NONE), BatchEntry(2, 5, 1, LogitsOf.LAST)),
      "token_ids": np.array([5, 6, 7],
                            np.int32), "hidden": np.zeros((3, 4),
                                                          np.float32), "opens": (m.SequenceOpen(1, REQUEST, 2), )
  }
  return m.Frame(**(fields | changes))


def test_04_a_frame_within_its_plan_passes() -> None:
  check_frame(frame(), BOUNDS)
  check_frame(frame(entries=(), token_ids=m.EMPTY_TOKEN_IDS, hidden=None, opens=(), drops=(1, )), BOUNDS)


@pytest.mark.parametrize(
    "changes", [
        {"hidden": None}, {"hidden": np.zeros((3, 5), np.float32)}, {"hidden": np.zeros((2, 4), np.float32)},
        {"hidden": np.zeros((3, 4), np.int32)}, {"token_ids": np.array([5, 6, 100], np.int32)},
        {"token_ids": np.array([5, -1, 7], np.int32)},
        {"entries": (BatchEntry(1, 0, 2, LogitsOf.NONE), BatchEntry(1, 2, 1, LogitsOf.LAST))},
        {"entries": (BatchEntry(1, 63, 2, LogitsOf.NONE), BatchEntry(2, 5, 1, LogitsOf.LAST))},
        {"entries": tuple(BatchEntry(i, 0, 1, LogitsOf.NONE) for i in range(3))},
        {"opens": (m.SequenceOpen(1, REQUEST, 65), )},
        {"opens": (m.SequenceOpen(1, replace(REQUEST, prompt_ids=(100, )), 2), )},
        {"opens": (m.SequenceOpen(1, replace(REQUEST, sampling=SamplingParams(temperature=float("nan"))), 2), )},
        {"opens": (m.SequenceOpen(1, replace(REQUEST, sampling=SamplingParams(logit_bias={100: 1.0})), 2), )},
    ]
)  # yapf: disable
def test_04_frames_beyond_plan_model_or_caches_are_refused(changes: dict[str, Any]) -> None:
  with pytest.raises(ProtocolError):
    check_frame(frame(**changes), BOUNDS)


def test_04_and_05_what_a_peer_outside_of_the_plan_says_changes_nothing(tmp_path: Path) -> None:
  """n0 and n1 work on a request of n0; n2, linked but without a stage, sends frames, tokens, failures and cancels."""
  async def scenario() -> None:
    async with local_ring(tmp_path, 1000, 700, 20) as (nodes, network):
      expected = await text_of(nodes[0], spec("hello", 60))
      plan = nodes[0].plans.plans[-1]
      assert plan.node_ids == ["n0", "n1"] or set(plan.node_ids) == {"n0", "n1"}
      intruder, wanted = network.nodes["n2"], spec("hello", 60)
      working = asyncio.create_task(text_of(nodes[0], wanted))
      await until_running(nodes[0])
      failure = m.Failure("peer_lost", "made up", "{}")
      lies: list[m.Message] = [
          *(frame(plan_id=plan.plan_id, epoch=plan.epoch, stage=stage) for stage in (0, 1, 2)),
          frame(plan_id="nowhere", epoch="x"),
          m.StepResult(plan.plan_id, 3, (m.SequenceToken(1, 65, "stop"), )), m.StepFailed(plan.plan_id, 3, failure),
          m.TokenDelivery(plan.plan_id, wanted.request_id, 0, 1, (TokenLogprob(65, -1.0), ), "stop"),
          m.TokenDelivery(plan.plan_id, wanted.request_id, 7, 0, ()),
          m.RequestFailed(plan.plan_id, wanted.request_id, failure), m.Cancel(plan.plan_id, wanted.request_id),
          m.ClosePlan(plan.plan_id, failure)
      ]  # yapf: disable
      for lie in lies:
        for node_id in plan.node_ids:
          intruder.send(node_id, lie)
        await asyncio.sleep(0)
      with pytest.raises(ProtocolError, match="cannot ask for n0"):
        await intruder.call(plan.first.node_id, m.Submit(m.OpenPlan(plan), replace(REQUEST, entry_node="n0")), 5)
      assert await working == expected
      await settled(nodes)

  run(scenario())


async def until_running(node: Node) -> None:
  async with asyncio.timeout(10):
    while not len(node.desk):  # noqa: ASYNC110 - nothing tells of it
      await asyncio.sleep(0)


def test_05_gaps_and_duplicates_of_the_last_stage_are_refused(tmp_path: Path) -> None:
  """The error goes to the client; what was refused is never part of an answer."""
  async def scenario(index: int) -> None:
    async with local_ring(tmp_path, 1000, 700) as (nodes, _):
      await text_of(nodes[0], spec("warm", 3))
      plan, wanted = nodes[0].plans.plans[-1], spec("hello", 500, logit_bias={256: -100.0})
      working = asyncio.create_task(text_of(nodes[0], wanted))
      generation = None
      async with asyncio.timeout(10):
        while generation is None or len(generation._emitted[0]) < 5:
          await asyncio.sleep(0)
          generation = nodes[0].desk._running.get(wanted.request_id)
      lie = m.TokenDelivery(plan.plan_id, wanted.request_id, 0, index, (TokenLogprob(65, -1.0), ))
      nodes[0].message(plan.last.node_id, lie)
      with pytest.raises(ProtocolError, match="was due"):
        await working

  for index in (0, 400):  # a token that was there, and one that is not due yet
    run(scenario(index))
