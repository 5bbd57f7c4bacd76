"""What nodes tell of themselves: in greetings, and in every heartbeat."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from exo.inference.engine_news import EngineNews
from exo.inference.offer import EngineOffer
from exo.inference.shard import Shard
from exo.topology.device_capabilities import DeviceCapabilities
from exo.topology.loaded_for import LoadedFor


@dataclass(frozen=True, slots=True)
class WorkerOffer:
  """One device of a node: its short name there, its engines, at least one, and the MB that it offers to the ring.

  The engines stand in the order in which one is chosen for a model, until heartbeats tell otherwise.
  """
  name: str
  engines: tuple[EngineOffer, ...]
  memory_mb: int

  @property
  def device(self) -> str:
    """What it is, for people."""
    return self.engines[0].device

  @property
  def usable(self) -> tuple[str, ...]:
    """The names of the engines that can run something."""
    return tuple(engine.name for engine in self.engines if engine.available)


@dataclass(frozen=True, slots=True)
class Hello:
  """Who a node is. `incarnation` grows with every start; `local_models` are names that only some nodes can provide.

  `workers` are its devices, at least one; `capabilities.memory` is what they offer together. `name` is what people call it, perhaps not it
  alone; "" from nodes that say none.
  """
  node_id: str
  incarnation: int
  port: int
  capabilities: DeviceCapabilities
  workers: tuple[WorkerOffer, ...]
  version: str
  local_models: tuple[str, ...] = ()
  name: str = ""

  @property
  def engine(self) -> str:
    """The engine of its first worker."""
    return self.workers[0].engines[0].name

  @property
  def device(self) -> str:
    """Its devices, for people."""
    return ", ".join(dict.fromkeys(worker.device for worker in self.workers))

  def since(self, beat: Heartbeat | None) -> Hello:
    """As it would be told now, after a heartbeat of the node's."""
    news = {} if beat is None else {worker.name: worker.news for worker in beat.workers}
    workers = (replace(w, engines=news[w.name].of(w.engines)) if w.name in news else w for w in self.workers)
    return replace(self, workers=tuple(workers))


@dataclass(frozen=True, slots=True)
class PeerLink:
  """A link that a node has, as it tells the others. `rtt_ms` 0 until measured; `bytes_per_s` of data, both ways, of late."""
  node_id: str
  rtt_ms: float
  interface: str = ""
  bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PlanPace:
  """What recent steps of decodes took on a plan whose first stage is the sender; medians in ms where not said.

  `compute_ms` and `wait_ms` have one entry a stage: its engine's time, and what a frame waited there beside. `hop_ms` is
  a lap's time less all compute, divided by the hops, of the `laps` that had the ring to themselves; `transport_ms` that
  of all laps less all that the stages spent, which leaves codec, gRPC and the wire. `drafted` and `accepted` count tokens,
  `wasted` is the part of the compute of all decodes that went to wrong drafts.
  """
  plan_id: str
  lap_ms: float
  compute_ms: tuple[float, ...]
  wait_ms: tuple[float, ...]
  hop_ms: float
  hop_p99_ms: float
  transport_ms: float
  laps: int
  drafted: int = 0
  accepted: int = 0
  wasted: float = 0.0


@dataclass(frozen=True, slots=True)
class PlanRoom:
  """Of an open plan whose first stage is the sender: what its model is loaded for, and what there is room for: so many requests at
  once, tokens in one of them, and, as long as others leave it that room, tokens in all their caches together. `kept`: the sender does not unload it for other models.
  """
  plan_id: str
  model_id: str
  loaded_for: LoadedFor
  max_sequences: int
  max_context: int
  max_kv_tokens: int
  kept: bool = False

  def __str__(self) -> str:
    return (
        f"{'kept, ' if self.kept else ''}loaded for {self.loaded_for}; room for {self.max_kv_tokens} tokens, {self.max_context} in one request, "
        f"{self.max_sequences} at once"
    )


@dataclass(frozen=True, slots=True)
class Rumour:
  """The highest count of a node's heartbeats that somebody has seen, and where it was reached ("host:port" or "")."""
  node_id: str
  incarnation: int
  beat: int
  address: str = ""


@dataclass(frozen=True, slots=True)
class Ailment:
  """Why a node's worker takes no part in a model's plans for now. `fingerprint` is of the model's files."""
  model_id: str
  fingerprint: str
  reason: str
  worker: str


@dataclass(frozen=True, slots=True)
class ShardMemory:
  """The engine that has loaded a shard, and what that takes, in MB: as it was planned, and as its process was measured to grow, at most
  while it was loaded and when it was.
  """
  engine: str
  planned_loading_mb: int
  planned_held_mb: int
  loading_mb: int
  held_mb: int


@dataclass(frozen=True, slots=True)
class WorkerBeat:
  """What a worker has and does now, in MB: `usable_mb` it could use, `used_mb` of it are taken by weights.

  `problem` is why it can compute nothing and takes part in no plan; "" while it can. `news` is what the greeting does not tell
  of its engines. `pinned` are the models that never give way for others, each with what it takes, `loading` those whose layers are
  on their way, each with how far they are, from 0 to 1, `memory` what each
  of `loaded` takes, in their order.
  """
  name: str
  usable_mb: int
  used_mb: int = 0
  loaded: tuple[Shard, ...] = ()
  problem: str = ""
  news: EngineNews = field(default_factory=EngineNews)
  pinned: tuple[tuple[str, int], ...] = ()
  loading: tuple[tuple[str, float], ...] = ()
  memory: tuple[ShardMemory, ...] = ()


@dataclass(frozen=True, slots=True)
class Heartbeat:
  """Sent on a connection of its own; an answer bears the number of what it answers.

  `load` is the part of the last seconds, 0..1, in which the device computed; `frames` counts what it has computed in all.
  `cpu_s` is the processor time that the process has used so far, `rss_mb` the memory that it occupies.
  `rumours` are what `membership.py` passes on. `leaving`: no new plans for this node, it shuts down or all its workers are broken.
  `data_bytes` is what its sender has put on the data stream of this link so far, `data_read_bytes` what it has read;
  `link_keys` names all links that it has with the peer; `retired`: this one is used no more. `ailments` are the models that it
  cannot run. `rooms` are of the plans that begin there. `temperature_c` and `power_w` are the machine's, 0 where it does not tell.
  """
  number: int
  is_answer: bool = False
  active: bool = False
  workers: tuple[WorkerBeat, ...] = ()
  load: float = 0.0
  frames: int = 0
  links: tuple[PeerLink, ...] = ()
  cpu_s: float = 0.0
  rss_mb: int = 0
  paces: tuple[PlanPace, ...] = ()
  leaving: bool = False
  rumours: tuple[Rumour, ...] = ()
  data_bytes: int = 0
  data_read_bytes: int = 0
  link_keys: tuple[str, ...] = ()
  ailments: tuple[Ailment, ...] = ()
  rooms: tuple[PlanRoom, ...] = ()
  retired: bool = False
  temperature_c: float = 0.0
  power_w: float = 0.0

  @property
  def free_memory_mb(self) -> int:
    """What its workers could use, together."""
    return sum(worker.usable_mb for worker in self.workers)

  @property
  def used_memory_mb(self) -> int:
    return sum(worker.used_mb for worker in self.workers)
