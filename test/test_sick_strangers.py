"""Line 11, requirement 15: what strangers can make a node without a cluster key keep, open, dial, fetch and believe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exo.bounds import MAX_WORKERS
from exo.download import model_head
from exo.download.manifest import Manifest, RepoFile
from exo.errors import (
    DownloadError,
    ExoError,
    InvalidRequestError,
    ModelFilesError,
    ModelTooLargeError,
    ProtocolError,
    QueueFullError,
    from_wire,
)
from exo.inference.sampling import SamplingParams
from exo.inference.shard import Shard
from exo.inference.weights.block_map import block_bytes, digests_of
from exo.networking import messages as m
from exo.networking.address_book import AddressBook
from exo.networking.address_rule import AddressRule
from exo.networking.grpc import node_service_pb2 as pb
from exo.networking.grpc import open_connections
from exo.networking.grpc.codec import decode, encode
from exo.networking.grpc.grpc_mesh import GrpcMesh
from exo.networking.grpc.open_connections import MOST_OF_HOST, SILENT_S, Silent, to_end
from exo.networking.grpc.peer_codec import hello_in, hello_out
from exo.networking.grpc.stream import EnvelopeStream
from exo.networking.grpc.unfinished import Unfinished
from exo.networking.grpc.wire import MAX_BYTES, PIECE_BYTES, envelope_bytes, envelope_items
from exo.networking.membership import Membership, State
from exo.networking.mesh import PeerCandidate
from exo.networking.model_messages import (
    BlocksFound,
    DownloadNews,
    FindBlocks,
    FindModel,
    ModelFound,
    RangeData,
    ReadRange,
)
from exo.networking.peer_messages import Heartbeat, Rumour, WorkerBeat
from exo.networking.place import place_of
from exo.networking.udp.beacon import decode_beacon
from exo.networking.udp.guard import DatagramGuard
from exo.networking.udp.udp_discovery import UdpDiscovery
from exo.orchestration.peer_bounds import PeerBounds
from exo.topology.ring_plan import RingPlan, Stage
from test.support.hub import Hub, hub
from test.support.nodes import NodeProcess, free_port, wait_until
from test.support.strangers import Mute, Size, bare_connections, grpc_port, refused, says, stranger

BASE = ("--inference-engine", "dummy", "--default-model", "dummy", "--discovery-module", "none")
# no more descriptors than most systems grant without being asked, and none to be had by asking
LIMITED = ("bash", "-c", 'ulimit -n 1024 && exec "$@"', "-")


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  node = NodeProcess(tmp_path_factory.mktemp("victim"), *BASE, node_id="victim", prefix=LIMITED,
                     env={"DEBUG": "1"}).wait_ready()
  try:
    assert node.chat("warm", max_tokens=2)[0] == 200
    yield node
    assert node.chat("still there", max_tokens=3)[0] == 200
    assert node.get("/v1/topology")[1]["nodes"].keys() == {"victim"}
  finally:
    assert node.stop() == 0


def run(scenario, timeout_s: float = 60) -> None:  # type: ignore[no-untyped-def]
  asyncio.run(asyncio.wait_for(scenario(), timeout_s))


def shard(n_layers: int = 8) -> pb.Shard:
  return pb.Shard(model_id="dummy", start_layer=0, end_layer=n_layers - 1, n_layers=n_layers)


def plan(node: str, epoch: str = "e", model: str = "dummy") -> RingPlan:
  return RingPlan(model, epoch, (Stage(node, Shard(model, 0, 7, 8), "cpu"), ))


def request(by: str, prompt: tuple[int, ...] = (1, 2), **more: object) -> m.Request:
  return m.Request("r", by, prompt, 5, frozenset({2}), SamplingParams(), **more)


# what it keeps


def news(i: int) -> DownloadNews:
  return DownloadNews(f"made-up/{i}", 1, 2, False, 1.0, 0, 0, "e" * 2000, "s" * 2000)


def test_line_11_download_notices_are_bounded_and_a_flood_of_them_is_cut_off(victim: NodeProcess) -> None:
  size = Size(victim)

  async def scenario() -> None:
    async with stranger(victim, says("newsman")) as it:
      for i in range(3000):  # more than any node has to tell, less than a flood
        assert await it.send(news(i))
      told = await asyncio.to_thread(lambda: wait_until(lambda: told_by("newsman"), 10, "news"))
      assert len(told) <= 64
      sent = 0
      while sent < 100_000 and await it.send(news(sent)):
        sent += 1
      assert await it.hung_up() and sent < 50_000

  def told_by(node_id: str) -> list[str]:
    data = victim.get("/v1/download/progress")[1]["data"]
    found = [entry["model"] for entry in data if entry["node_id"] == node_id]
    return found if "made-up/2999" in found else []

  run(scenario)
  assert "newsman" in refused(victim) and "messages like DownloadNews a second" in refused(victim)
  assert size.grown_mb < 60

  async def again() -> None:
    with pytest.raises(TimeoutError):
      async with asyncio.timeout(3), stranger(victim, says("newsman")):
        pass

  run(again)


def test_line_11_a_prompt_beyond_all_contexts_is_refused_before_it_is_taken_apart(victim: NodeProcess) -> None:
  size = Size(victim)

  async def scenario() -> None:
    async with stranger(victim, says("talker")) as it:
      submit = m.Submit(m.OpenPlan(plan("victim")), request("talker", tuple(range(10000))))
      with pytest.raises(InvalidRequestError, match="the context has room for 8192"):
        await it.mesh.call("victim", submit, 5)
      item = encode(submit, 9)
      for tokens in (2**20 + 1, 10_000_000):
        item.submit.request.prompt_ids[:] = [7] * tokens
        await it.send_item("control", item)
        assert await it.hung_up()
        break
    async with stranger(victim, says("talker2")) as it:
      await it.send_item("control", item)
      assert await it.hung_up()

  run(scenario)
  assert size.grown_mb < 100
  assert "more than 1048576 tokens" in refused(victim)


def crowd(field: int, inner: int, count: int) -> bytes:
  """An envelope with one item whose body `field` holds `count` empty messages `inner`: two bytes each on the wire."""
  body = bytes((inner << 3 | 2, 0)) * count
  return envelope(varint(field << 3 | 2) + varint(len(body)) + body)


def varint(number: int) -> bytes:
  out = bytearray()
  while number > 127:
    out.append(number & 127 | 128)
    number >>= 7
  return bytes((*out, number))


def envelope(item: bytes) -> bytes:
  return b"\x0a" + varint(len(item)) + item


def piece(data: bytes, last: bool) -> bytes:
  return (b"\x1a" if last else b"\x12") + varint(len(data)) + data


_MB = 2**20
TOO_MUCH = {
    "items": ("data", [bytes((10, 0)) * _MB]),
    "entries of a delivery": ("data", [crowd(6, 5, 900_000)]),
    "shards": ("heartbeat", [crowd(15, 8, 2**17 - 100)]),
    "a heartbeat": ("heartbeat", [bytes(2**18 + 1)]),
    "files": ("control", [crowd(42, 2, 500_000)]),
    "stages": ("control", [crowd(9, 1, 500_000)]),
    "a frame": ("data", [piece(bytes(PIECE_BYTES), False)] * (MAX_BYTES["data"] // PIECE_BYTES + 1)),
    "pieces of nothing": ("data", [piece(b"", False), envelope(b"")]),
    "no envelope": ("control", [os.urandom(1000)]),
    "a shard of no model": ("heartbeat", [envelope_bytes([pb.Item(heartbeat=pb.Heartbeat(workers=[pb.WorkerBeat(name="cpu", loaded=[shard(10**9)])]))])]),
}  # yapf: disable


@pytest.mark.parametrize("what", TOO_MUCH)
def test_line_11_what_no_node_says_ends_the_link_and_costs_nothing(victim: NodeProcess, what: str) -> None:
  kind, data = TOO_MUCH[what]
  size = Size(victim)

  async def scenario() -> None:
    async with stranger(victim, says(f"liar-{what.replace(' ', '-')}")) as it:
      with contextlib.suppress(Exception):  # it may hang up in the middle of it
        await it.send_bytes(kind, *data)
      assert await it.hung_up()

  run(scenario)
  assert size.grown_mb < 120
  assert victim.get("/healthcheck", 2)[0] == 200


def test_line_11_messages_that_never_end_are_given_up() -> None:
  """The one that began first, once all together take too much memory; and one alone at the bound of its stream."""
  async def scenario() -> None:
    unfinished, streams, over = Unfinished(3 * PIECE_BYTES), [], []
    for _ in range(3):
      pieces: asyncio.Queue[bytes | None] = asyncio.Queue()

      async def write(_: bytes) -> None:
        pass

      stream = EnvelopeStream("data", pieces.get, write, unfinished)
      streams.append(pieces)
      over.append(asyncio.create_task(stream.run(lambda *_: None)))
    for count in range(2):
      for pieces in streams:
        await pieces.put(piece(bytes(PIECE_BYTES - 100), False))
        await asyncio.sleep(0.01)
      assert unfinished.total_bytes <= 3 * PIECE_BYTES, count
    await asyncio.sleep(0.05)
    assert [task.done() for task in over] == [True, True, False]
    assert "does not end it" in over[0].result()
    await streams[2].put(None)
    assert await over[2] == "closed by the other side" and unfinished.total_bytes == 0

  run(scenario)


def test_line_11_what_nobody_reads_is_bounded() -> None:
  """Somebody asks for much and reads nothing: what waits for it is bounded in bytes, not only in messages."""
  async def scenario() -> None:
    async def never() -> bytes:
      await asyncio.sleep(100)
      return b""

    stream = EnvelopeStream("bulk", never, lambda _: never())  # type: ignore[arg-type, return-value]
    running = asyncio.create_task(stream.run(lambda *_: None))
    await asyncio.sleep(0)
    block, posted = encode(RangeData(bytes(2**22), bytes(32)), 1, is_reply=True), 0
    with pytest.raises(ProtocolError, match="the other side does not read"):
      while posted < 4096:
        stream.post(block)
        posted += 1
    assert posted <= 65
    running.cancel()

  run(scenario)


def test_line_11_made_up_nodes_crowd_nobody_out() -> None:
  book = AddressBook(30)
  for i in range(500):
    book.note(f"made-up-{i}", PeerCandidate(f"made-up-{i}", "10.0.0.66", 2000 + i), (), 1.0)
  assert len(book.nodes) == 64
  for i in range(20):
    assert book.note(f"n{i}", PeerCandidate(f"n{i}", "10.0.0.5", 5000 + i), (), 1.0) is not None
  for i in range(100):
    book.note("n1", PeerCandidate("n1", "10.0.0.66", 3000 + i), (), 2.0 + i)
  known = book.note("n1", PeerCandidate("n1", "10.0.0.7", 5001), (), 200.0)
  assert known is not None and ("10.0.0.7", 5001) in known.candidates and len(known.candidates) == 6

  members = Membership("me", 1, 0.0)
  members.heard("gossip", [Rumour(f"made-up-{i}", 1, 1) for i in range(5000)], 0.0)
  members.heard("honest", [Rumour("honest", 1, 1)], 0.0)
  assert len(members.states) == 1024 and members.state("honest") is State.ALIVE


def test_line_11_what_is_merely_too_long_is_cut(victim: NodeProcess) -> None:
  size = Size(victim)

  async def scenario() -> None:
    async with stranger(victim, says("gossip")) as it:
      for _ in range(20):
        await it.send_bytes("heartbeat", crowd(15, 7, 2**16))
      assert not await it.hung_up(1.5)

  run(scenario)
  assert size.grown_mb < 50


def test_line_11_heartbeats_are_brought_within_bounds() -> None:
  odd = float("nan"), float("inf"), -1.0
  beat = pb.Heartbeat(
      number=1,
      load=odd[0],
      cpu_s=odd[1],
      links=[pb.PeerLink(node_id="a\x1b[2J", rtt_ms=1),
             pb.PeerLink(node_id="b", rtt_ms=odd[0])],
      rumours=[pb.Rumour(node_id="x\ny", address="127.0.0.1:2000"),
               pb.Rumour(node_id="c" * 129)],
      paces=[pb.PlanPace(plan_id="p" * 1000, lap_ms=odd[0], compute_ms=[odd[1]] * 5000, wasted=odd[2])],
      workers=[pb.WorkerBeat(name="cpu", usable_mb=-5, used_mb=2**62, loaded=[shard()] * 1000, problem="a\nb")]
  )
  read, _, _ = decode(pb.Item(heartbeat=beat))
  assert isinstance(read, Heartbeat)
  assert (read.free_memory_mb, read.load, read.cpu_s) == (0, 0, 0) and read.used_memory_mb <= 2**40
  assert [(link.node_id, link.rtt_ms) for link in read.links] == [("b", 0)] and not read.rumours
  (pace, ) = read.paces
  assert len(pace.plan_id) == 64 and pace.lap_ms == pace.wasted == 0 and len(pace.compute_ms) == 1024
  json.dumps([pace.lap_ms, pace.compute_ms, read.load], allow_nan=False)
  (worker, ) = read.workers
  assert worker.problem == "a b" and len(worker.loaded) == 256
  for names in (["x\ny"], [""], ["cpu", "cpu"], [f"w{i}" for i in range(MAX_WORKERS + 1)]):
    with pytest.raises(ProtocolError, match="heartbeat names"):
      decode(pb.Item(heartbeat=pb.Heartbeat(workers=[pb.WorkerBeat(name=name) for name in names])))


NO_NAMES = ["", "a" * 129, "a\nb", "a\x1b[31m", "a b", "<script>", "a\u202eb", "a/b"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_line_11_names_that_cannot_be_shown_are_no_names(name: str) -> None:
  with pytest.raises(ProtocolError):
    hello_in(hello_out(says(name), "data"))
  with pytest.raises(ProtocolError):
    decode_beacon(json.dumps({"type": "discovery", "node_id": name, "grpc_port": 2000}).encode())
  stages = [pb.Stage(node_id=name, worker="cpu", shard=shard())]
  with pytest.raises(ProtocolError):
    decode(pb.Item(open_plan=pb.OpenPlan(plan=pb.Plan(model_id="dummy", stages=stages))))
  assert hello_in(hello_out(says("node-1_a.b"), "data"))[0].node_id == "node-1_a.b"


def test_line_11_who_has_no_name_does_not_join(victim: NodeProcess) -> None:
  async def scenario() -> None:
    with pytest.raises(TimeoutError):
      async with asyncio.timeout(1.5), stranger(victim, says(NO_NAMES[3])):
        pass

  run(scenario)
  assert victim.get("/v1/topology")[1]["nodes"].keys() == {"victim"}


def test_line_11_many_things_that_are_one_reply_are_bounded_too() -> None:
  spans = pb.BlocksFound.File(name="f", edges=range(2**18 + 2))
  with pytest.raises(ProtocolError, match="more spans"):
    decode(pb.Item(blocks_found=pb.BlocksFound(files=[spans])))
  with pytest.raises(ProtocolError, match="endless list"):
    decode(pb.Item(model_found=pb.ModelFound(manifest_json=" " * (5 * _MB))))
  with pytest.raises(ProtocolError, match="too many stages"):
    stages = [pb.Stage(node_id=f"n{i}", worker="cpu", shard=shard()) for i in range(2000)]
    decode(pb.Item(open_plan=pb.OpenPlan(plan=pb.Plan(model_id="m", stages=stages))))
  with pytest.raises(ProtocolError):
    envelope_items(bytes((10, 0)) * 65)
  assert len(envelope_items(bytes((10, 0)) * 64)) == 64


@pytest.mark.parametrize("details", ['{"message": 1, "self": 2}', "[" * 5000, '{"node": {"a": 1}}', "null", "7"])
def test_line_11_an_error_from_elsewhere_is_read_whatever_is_in_it(details: str) -> None:
  error = from_wire("peer_lost", "it is gone", details)
  assert isinstance(error, ExoError) and str(error) == "it is gone"
  assert all(not isinstance(value, (dict, list)) for value in error.details.values())


def test_line_11_a_peer_gets_only_so_many_plans_opened(victim: NodeProcess) -> None:
  async def scenario() -> None:
    async with stranger(victim, says("planner")) as it:

      async def ask(i: int) -> str:
        try:
          await it.mesh.call("victim", m.OpenPlan(plan("victim", f"e{i}")), 20)
        except QueueFullError as error:
          return error.kind
        except ExoError:
          pass
        return "tried"

      answers = await asyncio.gather(*(ask(i) for i in range(200)))
      assert 100 <= answers.count("queue_full") < 200
      waiting = await asyncio.gather(*(ask(7) for _ in range(400)))  # a plan that it has asked for already
      assert "tried" in waiting

  run(scenario)


def test_line_11_links_of_one_address_are_bounded(victim: NodeProcess) -> None:
  size = Size(victim)

  async def scenario() -> None:
    async with stranger(victim, says("crowd")) as it:
      it.mesh._doorkeeper.admit = lambda *_: None  # type: ignore[method-assign]
      for i in range(100):
        it.mesh._hello = says(f"one-of-many-{i}")
        await it.mesh._dial(PeerCandidate("victim", "127.0.0.1", grpc_port(victim)))
      count = len(await asyncio.to_thread(victim.peers)) - 1
      assert 48 <= count <= 64
      assert "there is no room for more" in await asyncio.to_thread(refused, victim)

  run(scenario)
  assert size.grown_mb < 120
  wait_until(lambda: victim.peers() == {"victim"}, 15, "their leaving")


# connections


@pytest.mark.parametrize("hosts", [1, 40])
@pytest.mark.parametrize("where", ["ring", "api"])
def test_line_11_bare_connections_take_neither_the_api_nor_the_ring(
    victim: NodeProcess, where: str, hosts: int
) -> None:
  size = Size(victim)
  before = size.descriptors
  port = grpc_port(victim) if where == "ring" else int(victim.url.rpartition(":")[2])
  held = bare_connections(port, 1200, hosts)
  try:
    most = 0
    for _ in range(5):
      began = time.monotonic()
      assert victim.get("/healthcheck", 5)[0] == 200
      assert time.monotonic() - began < 5
      most = max(most, size.descriptors)
      time.sleep(0.1)
    assert most < 1024 - 100  # what models, logs and links need is there

    async def scenario() -> None:
      async with stranger(victim, says(f"guest-{where}-{hosts}")):
        assert f"guest-{where}-{hosts}" in await asyncio.to_thread(victim.peers)

    run(scenario)
    assert victim.chat("hello", max_tokens=3)[0] == 200
  finally:
    for sock in held:
      sock.close()
  wait_until(lambda: size.descriptors < before + 40, 15, "the descriptors' coming back")


def test_line_11_which_silent_connections_go() -> None:
  def silent(host: str, count: int, since_s: float = 100.0) -> list[Silent]:
    return [Silent((host, i), since_s + i * 1e-3) for i in range(count)]

  assert not to_end(silent("a", MOST_OF_HOST) + silent("b", 5), 1000, 101)
  assert to_end(silent("a", 3), 1000, 100.5 + SILENT_S) == {("a", 0), ("a", 1), ("a", 2)}
  gone = to_end(silent("a", 100) + silent("b", 5), 1000, 101)
  assert gone == {("a", i) for i in range(100 - MOST_OF_HOST // 2)}  # the oldest of the crowd, and nobody else's
  many = [one for i in range(30) for one in silent(f"h{i}", 10)]
  assert 300 - len(to_end(many, 200, 101)) == 50  # room for newcomers


def test_line_11_descriptors_are_taken_where_they_may_be(tmp_path: Path) -> None:
  """A soft limit of 256, as on macOS."""
  import resource
  _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  prefix = ("bash", "-c", 'ulimit -Sn 256 && exec "$@"', "-")
  node = NodeProcess(tmp_path, *BASE, node_id="n", prefix=prefix).wait_ready()
  try:
    limits = Path(f"/proc/{node.process.pid}/limits")
    if not limits.exists():
      pytest.skip("the system does not tell another process's limits")
    line = next(line for line in limits.read_text().splitlines() if line.startswith("Max open files"))
    assert int(line.split()[3]) == min(hard, 16384)
  finally:
    node.stop()


def test_line_11_a_sweep_ends_what_says_nothing_and_leaves_what_does() -> None:
  listener = socket.create_server(("127.0.0.1", 0))
  port = listener.getsockname()[1]
  clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(MOST_OF_HOST + 8)]
  accepted = [listener.accept()[0] for _ in clients]
  try:
    served = {place_of(*clients[0].getsockname())}
    connections = open_connections.OpenConnections(port, 1000)
    count, ended = connections.sweep(served, 0.0)
    assert (count, ended) == (MOST_OF_HOST + 7, MOST_OF_HOST + 7 - MOST_OF_HOST // 2)
    connections.sweep(served, SILENT_S + 1)
    for i, client in enumerate(clients):
      client.settimeout(0.2)
      if i == 0:
        with pytest.raises(TimeoutError):
          client.recv(1)
      else:
        assert client.recv(1) == b""
  finally:
    for sock in (*clients, *accepted, listener):
      sock.close()


def test_line_11_one_datagram_is_worth_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
  """To a machine that has nothing to do with it: what is there accepts and says nothing."""
  monkeypatch.setattr("exo.networking.grpc.grpc_mesh.GREETING_TIMEOUT_S", 0.3)
  accepted = 0

  async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    nonlocal accepted
    accepted += 1
    await reader.read()
    writer.close()

  async def scenario() -> None:
    port = free_port(socket.SOCK_DGRAM)
    server = await asyncio.start_server(counted, "127.0.0.1", 0)
    beacon = {"type": "discovery", "node_id": "zz", "grpc_port": server.sockets[0].getsockname()[1], "reply": True}
    mesh = GrpcMesh(says("aa"), "127.0.0.1", 30)
    discovery = UdpDiscovery(port, port, guard=DatagramGuard(None, AddressRule(restricted=True)))
    await mesh.start(Mute())
    await discovery.start(mesh.hello, mesh.offer)
    try:
      with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(json.dumps(beacon).encode(), ("127.0.0.1", port))
        await asyncio.sleep(2)
        assert accepted == 1
        sock.sendto(json.dumps(beacon).encode(), ("127.0.0.1", port))  # it is still there: once more
        await asyncio.sleep(2)
        assert accepted == 2
        for i in range(190):  # made-up names, one address
          sock.sendto(json.dumps(beacon | {"node_id": f"z{i}"}).encode(), ("127.0.0.1", port))
        await asyncio.sleep(2)
        assert 2 < accepted < 100
    finally:
      await discovery.stop()
      await mesh.stop()
      server.close()

  run(scenario)


# what it believes


def test_line_11_a_claim_that_no_machine_can_make_gets_no_layers(victim: NodeProcess) -> None:
  asked = []

  class Giant(Mute):
    """All of what it claims is free, too."""
    async def answer(self, sender: str, message: m.Message) -> m.Message:
      asked.append(type(message))
      return m.Done()

    def heartbeat(self) -> Heartbeat:
      return Heartbeat(0, workers=(WorkerBeat("cpu", 100 * 2**20), ))

  async def scenario() -> None:
    async with stranger(victim, says("giant", 100 * 2**20), Giant()):
      topology = (await asyncio.to_thread(victim.get, "/v1/topology"))[1]
      assert topology["nodes"]["giant"]["memory"] == 0
      assert "giant says that it offers 104857600 MB" in "\n".join(topology["refused"])
      status, answer = await asyncio.to_thread(victim.chat, "who computes this?", max_tokens=4)
      assert status == 200 and answer["usage"]["completion_tokens"] == 4
      topology = (await asyncio.to_thread(victim.get, "/v1/topology"))[1]
      assert all(s["node_id"] == "victim" for plan in topology["plans"] for s in plan["stages"])
      assert not {m.OpenPlan, m.Submit} & set(asked), "nor is it tried first"

  run(scenario)


@pytest.mark.parametrize(("keyed", "most", "claim", "believed"), [
    (False, None, 8 * 1024, True), (False, None, 512 * 1024, True), (False, None, 2**21, True),
    (False, None, 2**21 + 1, False), (True, None, 2**40, True), (True, 1000, 1001, False),
    (False, 2**22, 2**22, True)
])  # yapf: disable
def test_line_11_what_is_believed_of_memory(keyed: bool, most: int | None, claim: int, believed: bool) -> None:
  from test.support.clusters import keyring
  mesh = GrpcMesh(says("a"), "127.0.0.1", 30, keyring() if keyed else None, most_memory_mb=most)
  peer = mesh._claims.believed(says("b", claim))
  assert peer.capabilities.memory == sum(worker.memory_mb for worker in peer.workers) == (claim if believed else 0)


# what it fetches

GOLDENS = Path(__file__).parent / "data" / "goldens"


@pytest.fixture(scope="module")
def hubbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NodeProcess, Hub]]:
  """A node whose user has a token for the hub that it asks."""
  home = tmp_path_factory.mktemp("hubbed")
  folder = next(path.parent for path in sorted(GOLDENS.rglob("config.json")))
  with hub({"some/model": folder}) as server:
    env = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_secret", "HF_HOME": str(home / "hf")}
    node = NodeProcess(home, *BASE, node_id="hubbed", env=env).wait_ready()
    try:
      yield node, server
    finally:
      assert node.stop() == 0


def test_line_11_the_hub_sees_no_token_on_a_strangers_word(hubbed: tuple[NodeProcess, Hub]) -> None:
  node, server = hubbed

  async def scenario() -> None:
    async with stranger(node, says("nosy")) as it:

      async def ask(epoch: str) -> None:
        await it.mesh.call("hubbed", m.OpenPlan(plan("hubbed", epoch, "some/model")), 30)

      server.faults.gated = True
      with pytest.raises(DownloadError, match="shows its token for no repository that only another node names"):
        await ask("gated")
      server.faults.gated = False
      with pytest.raises(ExoError):  # this model's files are others than the plan's
        await ask("open")
      assert server.requests and set(server.authorizations) == {None}
      holding = await it.mesh.call("hubbed", FindModel("nobody/asked"), 30)
      assert holding == ModelFound("") and not any("nobody" in asked for asked in server.requests)
      # what a client of this node asks for is its user's own business
      server.forget()
      status, _ = await asyncio.to_thread(node.post, "/download", {"model": "some/model", "wait": True})
      assert status == 200 and set(server.authorizations) == {"Bearer hf_secret"}

  run(scenario)


class Giver(Mute):
  """Offers a model that no hub knows, with one file that nobody needs."""
  def __init__(self, size: int) -> None:
    config = json.dumps({"model_type": "llama"}).encode()
    files = [RepoFile("big.json", size), RepoFile("config.json", len(config)), RepoFile("model.safetensors", 10**12)]
    self.manifest = Manifest("gift", "gift", "1", tuple(files))
    self.given = 0

  async def answer(self, sender: str, message: m.Message) -> m.Message:
    match message:
      case FindModel():
        return ModelFound(self.manifest.to_json() if message.model_id == "gift" else "")
      case FindBlocks():
        return BlocksFound(tuple((file.name, ((0, file.size), )) for file in self.manifest.files))
      case ReadRange():
        data = bytes(message.end - message.start)
        file = self.manifest.file(message.name)
        assert file is not None
        self.given += len(data)
        return RangeData(data, digests_of(data, block_bytes(file.size)))
    return m.Done()


@pytest.mark.parametrize("size", [300 * _MB, 65 * _MB])
def test_line_11_a_neighbours_gift_fills_no_disk(hubbed: tuple[NodeProcess, Hub], size: int) -> None:
  node, _ = hubbed
  giver = Giver(size)

  async def scenario() -> None:
    async with stranger(node, says("giver"), giver):
      status, answer = await asyncio.to_thread(
          node.post, "/v1/completions", {"model": "gift", "prompt": "x", "max_tokens": 1}
      )
      assert status in (400, 404, 502, 503) and answer["error"]["message"]

  run(scenario)
  assert giver.given < 10 * _MB
  written = sum(path.stat().st_blocks * 512 for path in node.home.rglob("*") if path.is_file())
  assert written < 60 * _MB


def test_line_11_what_others_have_fetched_here_is_bounded() -> None:
  now = [0.0]
  bounds = PeerBounds(100, lambda: now[0])
  for i in range(8):
    bounds.note_fetch(f"m{i}", 100)
    bounds.note_fetch(f"m{i}", 100)  # the same once more
  with pytest.raises(DownloadError, match="exo pull m8"):
    bounds.note_fetch("m8", 100)
  now[0] += 3600
  bounds.note_fetch("m8", 100)
  with pytest.raises(ModelTooLargeError):
    bounds.check_stage(Shard("m", 0, 7, 8), 8, 1000, 100)
  with pytest.raises(ProtocolError, match="has 9 layers here"):
    bounds.check_stage(Shard("m", 0, 7, 8), 9, 10, 100)


def test_line_11_headers_of_all_files_together_are_bounded() -> None:
  headers = model_head._Headers()
  for i in range(5):
    headers.add(100 * _MB, f"{i}.safetensors")
  with pytest.raises(ModelFilesError, match="claim headers"):
    headers.add(100 * _MB, "6.safetensors")
