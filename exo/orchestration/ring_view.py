"""The ring as this node sees it at one moment: what every screen shows, made from what nodes tell of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from exo.inference.shard import Shard
from exo.model_file import ModelFile
from exo.networking.peer_messages import Ailment, Heartbeat, Hello, PlanRoom, ShardMemory, WorkerBeat
from exo.orchestration.node import Node
from exo.topology.device_capabilities import DeviceCapabilities
from exo.topology.ring_plan import Stage

_MB = 2**20


@dataclass(frozen=True, slots=True)
class WorkerView:
  """One device of a node: `problem` is why it can compute nothing, "" while it can. Memory as in `NodeView`, `loading` as in
  `WorkerBeat`.
  """
  name: str
  device: str
  engines: tuple[str, ...]
  memory_mb: int
  used_mb: int
  free_mb: int
  shards: tuple[Shard, ...]
  problem: str
  loading: tuple[tuple[str, float], ...]
  memory: tuple[ShardMemory, ...] = ()  # of each of `shards`; none of a node that does not tell


@dataclass(frozen=True, slots=True)
class NodeView:
  """Memory in MB: offered to the ring, taken by loaded weights, and free. `load` is the part of time spent computing,
  `ailments` the models that the node cannot run for now, `name` what people call it.
  """
  node_id: str
  capabilities: DeviceCapabilities
  engine: str
  device: str
  version: str
  address: str
  used_mb: int
  free_mb: int
  load: float
  frames: int
  ailments: tuple[Ailment, ...]
  workers: tuple[WorkerView, ...]
  is_here: bool
  name: str
  temperature_c: float = 0.0
  power_w: float = 0.0

  @property
  def memory_mb(self) -> int:
    return self.capabilities.memory

  @property
  def shards(self) -> tuple[Shard, ...]:
    return tuple(shard for worker in self.workers for shard in worker.shards)


@dataclass(frozen=True, slots=True)
class LinkView:
  """A link in ring terms: undirected, `rtt_ms` 0 until measured."""
  node_ids: tuple[str, str]
  rtt_ms: float
  interface: str
  bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Chain:
  """A model's stages in ring order, as the nodes hold them."""
  model_id: str
  stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class FileView:
  """What a model's plans run whose stages are here. `why` is there where this node has chosen it."""
  model_id: str
  file: ModelFile
  why: str


@dataclass(frozen=True, slots=True)
class RequestCounts:
  """`running` and `waiting` at the first stages here; `own` are those of this node's clients, with their speed."""
  own: int
  running: int
  waiting: int
  tokens_per_s: float


@dataclass(frozen=True, slots=True)
class RingView:
  """Nodes by id, this one first. `refused` are models that are at fault themselves, with reasons. `rooms` are of the plans that are
  open, each with the node where it begins.
  """
  nodes: tuple[NodeView, ...]
  links: tuple[LinkView, ...]
  chains: tuple[Chain, ...]
  requests: RequestCounts
  active_node_id: str | None
  refused: tuple[tuple[str, str], ...] = ()
  rooms: tuple[tuple[str, PlanRoom], ...] = ()
  files: tuple[FileView, ...] = ()

  @property
  def memory_mb(self) -> int:
    return sum(node.memory_mb for node in self.nodes)

  @property
  def tflops(self) -> float:
    return sum(node.capabilities.flops.fp16 for node in self.nodes)


def ring_view(node: Node) -> RingView:
  """Of what is known now; asks nobody."""
  names = node.names()
  nodes = (_here(node, names), *_peers(node, names))
  refused = tuple(node.planner.refused.told().items())
  return RingView(
      nodes, _links(node), _chains(nodes), _requests(node),
      node.topology().active_node_id, refused, node.rooms, file_views(node)
  )


def file_views(node: Node) -> tuple[FileView, ...]:
  """Each once, by model."""
  found = {(plan.model_id, plan.file.key): plan.file for plan in node.plans.plans}
  return tuple(
      FileView(model, file, node.files.why(model, file))
      for (model, _), file in sorted(found.items(), key=lambda item: item[0])
  )


def _here(node: Node, names: Mapping[str, str]) -> NodeView:
  beat = node.heartbeat()
  hello = node.hello.since(beat)
  used = beat.used_memory_mb
  return NodeView(
      node.node_id, hello.capabilities, hello.engine, hello.device, hello.version, f"port {hello.port}", used,
      _free(hello.capabilities.memory, beat.free_memory_mb, used), beat.load, beat.frames,
      node.planner.left_out().get(node.node_id, ()), worker_views(hello, beat), True, names[node.node_id],
      beat.temperature_c, beat.power_w
  )


def _peers(node: Node, names: Mapping[str, str]) -> list[NodeView]:
  views, ailments = [], node.planner.left_out()
  for node_id, peer in sorted(node.mesh.peers().items()):
    hello, beat = peer.hello.since(peer.heartbeat), peer.heartbeat
    memory = hello.capabilities.memory
    free = _free(memory, beat.free_memory_mb, beat.used_memory_mb) if beat else memory
    views.append(
        NodeView(
            node_id, hello.capabilities, hello.engine, hello.device, hello.version, peer.address,
            beat.used_memory_mb if beat else 0, free, beat.load if beat else 0.0, beat.frames if beat else 0,
            ailments.get(node_id, ()), worker_views(hello, beat), False, names.get(node_id, node_id),
            beat.temperature_c if beat else 0.0, beat.power_w if beat else 0.0
        )
    )
  return views


def worker_views(hello: Hello, beat: Heartbeat | None) -> tuple[WorkerView, ...]:
  """What a node's latest heartbeat, and its greeting since then, tell of its devices."""
  told = {worker.name: worker for worker in beat.workers} if beat else {}
  views = []
  for offer in hello.workers:
    now = told.get(offer.name, WorkerBeat(offer.name, offer.memory_mb))
    free = _free(offer.memory_mb, now.usable_mb, now.used_mb)
    views.append(
        WorkerView(
            offer.name, offer.device, offer.usable, offer.memory_mb, now.used_mb, free, now.loaded, now.problem,
            now.loading, now.memory
        )
    )
  return tuple(views)


def _free(offered_mb: int, usable_mb: int, used_mb: int) -> int:
  """What is left of the offer, and no more than the machine has: `usable_mb` counts what the engine holds already."""
  return max(0, min(offered_mb, usable_mb) - used_mb)


def _links(node: Node) -> tuple[LinkView, ...]:
  """Each pair once, measured by this node where it is one of the two; the interface by whichever side knows it."""
  peers = node.mesh.peers()
  found: dict[tuple[str, str], LinkView] = {}

  def note(one: str, other: str, rtt_ms: float, interface: str, bytes_per_s: float) -> None:
    pair = (min(one, other), max(one, other))
    known = found.get(pair)
    if known is None:
      found[pair] = LinkView(pair, rtt_ms, interface, bytes_per_s)
    elif not known.interface or not known.rtt_ms:
      found[pair] = LinkView(pair, known.rtt_ms or rtt_ms, known.interface or interface, known.bytes_per_s)

  for node_id, peer in peers.items():
    note(node.node_id, node_id, peer.rtt_ms, peer.interface, peer.bytes_per_s)
  for node_id, peer in peers.items():
    for link in peer.heartbeat.links if peer.heartbeat else ():
      if link.node_id in peers or link.node_id == node.node_id:
        note(node_id, link.node_id, link.rtt_ms, link.interface, link.bytes_per_s)
  return tuple(found[pair] for pair in sorted(found))


def _chains(nodes: tuple[NodeView, ...]) -> tuple[Chain, ...]:
  """The models that are whole: stages joined end to end, from what each node says that it holds."""
  held: dict[tuple[str, int], dict[int, Stage]] = {}
  for view in nodes:
    for worker in view.workers:
      for shard in worker.shards:
        stage = Stage(view.node_id, shard, worker.name)
        held.setdefault((shard.model_id, shard.n_layers), {})[shard.start_layer] = stage
  chains = []
  for (model_id, n_layers), by_start in sorted(held.items()):
    stages, start = [], 0
    while start in by_start:
      stages.append(by_start[start])
      start = by_start[start].shard.end_layer + 1
    if start == n_layers:
      chains.append(Chain(model_id, tuple(stages)))
  return tuple(chains)


def _requests(node: Node) -> RequestCounts:
  own = node.activity.running
  counts = [driver.scheduler.counts for driver in node.plans.drivers]
  return RequestCounts(
      len(own), sum(c.running for c in counts), sum(c.waiting for c in counts), sum(r.tokens_per_s for r in own)
  )
