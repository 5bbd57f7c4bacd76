"""One node of the ring: it joins discovery, links, plans and the requests of its clients."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from exo.config import Config
from exo.download.model_store import ModelEntry, Removed
from exo.errors import (
    ConfigError,
    DrainingError,
    ExoError,
    ModelInUseError,
    ModelNotFoundError,
    ProtocolError,
    StartingError,
    in_words,
)
from exo.inference.offer import EngineOffer
from exo.log import log
from exo.machine_sensors import Sensors
from exo.model_aliases import ModelAliases, aliases_file
from exo.networking.discovery import Discovery
from exo.networking.mesh import Mesh
from exo.networking.messages import (
    Done,
    Frame,
    GiveWay,
    GrowLease,
    Message,
    OpenPlan,
    PromptProgress,
    RequestFailed,
    ShrinkLease,
    StepResult,
    Submit,
    TokenDelivery,
)
from exo.networking.model_messages import DownloadNews, FindBlocks, FindModel, ListModels, ReadRange
from exo.networking.peer_messages import Heartbeat, Hello, PlanRoom
from exo.networking.record_messages import ChangeRecord, FindRecord
from exo.node_names import called, distinct
from exo.orchestration.activity import Activity
from exo.orchestration.awake_cores import AwakeCores
from exo.orchestration.entry_desk import EntryDesk
from exo.orchestration.form_choice import FormChoice, own_workers
from exo.orchestration.generation import Generation, GenerationSpec
from exo.orchestration.keep_alive import KeepAlive
from exo.orchestration.kept_records import KeptRecords
from exo.orchestration.meter import Meter
from exo.orchestration.model_catalog import ModelCatalog, ModelInfo
from exo.orchestration.model_profiles import ModelProfiles
from exo.orchestration.model_sharing import ModelSharing
from exo.orchestration.node_news import heartbeat_of, rooms_of
from exo.orchestration.peer_bounds import PeerBounds
from exo.orchestration.plan_host import PlanHost
from exo.orchestration.planner import ModelRing, Planner
from exo.orchestration.record_store import RecordStore
from exo.orchestration.ring_files import RingFiles
from exo.orchestration.ring_models import RingModels
from exo.orchestration.sense_check import SenseChecks
from exo.orchestration.stage_files import StageFiles
from exo.tasks import TaskOwner
from exo.topology.loaded_for import LoadedFor
from exo.topology.placements import Strategy
from exo.topology.topology import Topology
from exo.worker.studies import Studies
from exo.worker.worker import Worker

_MB = 2**20
_DRAIN_POLL_S = 0.05
_DROP_EVERY_S = 1.0


class Node:
  """Implements `MeshHandler`. `hello` describes this node; the mesh fills in the port that it got."""
  def __init__(
      self,
      config: Config,
      hello: Hello,
      mesh: Mesh,
      discovery: Discovery,
      catalog: ModelCatalog,
      workers: Sequence[Worker],
      place: Strategy,
      ring_is_keyed: bool = False
  ) -> None:
    self.config, self.hello, self.workers, self.catalog = config, hello, tuple(workers), catalog
    self.profiles = ModelProfiles(catalog.store)
    self._mesh, self._discovery = mesh, discovery
    self._tasks = TaskOwner("node")
    self._draining = False
    self._sensors = Sensors()
    self._awaited = "its ports and the search for other nodes"
    self._joined = asyncio.Event()
    self._called: dict[str, str] = {}  # peers in the log
    self.meter = Meter()
    self.aliases = ModelAliases(config.model_aliases, aliases_file(config.state_dir))
    self.activity = Activity(self.meter)
    offered = hello.capabilities.memory * _MB
    rehearse = mesh.rehearse if config.awake_cores == "auto" else None
    self.plans = PlanHost(
        hello.node_id, self.workers, StageFiles(catalog), Studies(config.state_dir),
        self.send, self.call, rehearse, self.meter, config.speculation == "auto",
        AwakeCores(config.awake_cores == "auto"), config.queue_timeout, lambda node_id: node_id in mesh.peers()
    )
    wanted = LoadedFor(config.context, config.parallel)
    self.keep_alive = KeepAlive(self.plans, self._tasks)
    self.planner = Planner(hello.node_id, mesh, place, wanted, self.plans, self.send, self.call, self.problems)
    self.desk = EntryDesk(hello.node_id, self.send, self.call)
    catalog.store.on_false(self._on_false)
    catalog.store.prefer(FormChoice(lambda: own_workers(hello.node_id, self.workers)))
    self._bounds = PeerBounds(offered)
    self.ring_models = RingModels(catalog.store, self.profiles, mesh.peers, self.call, self._tasks)
    self.files = RingFiles(
        hello.node_id, catalog, self.ring_models, mesh.peers, lambda: self.planner.workers(self.hello), self._tasks
    )
    self.sharing = ModelSharing(catalog.store, mesh.peers, self.send, self.call, lambda: self.plans.busy)
    self.records = KeptRecords(
        RecordStore(config.state_dir / "kept"),
        mesh.peers,
        self.call,
        allowed=not config.no_store,
        ring_is_keyed=ring_is_keyed
    )
    self.sense = SenseChecks(
        config.state_dir, self.generation, lambda model_id: any(room.model_id == model_id for _, room in self.rooms),
        lambda: bool(len(self.desk)) or not self.plans.idle or
        any(peer.heartbeat is not None and peer.heartbeat.active for peer in mesh.peers().values()), self._tasks
    )

  @property
  def node_id(self) -> str:
    return self.hello.node_id

  @property
  def engine(self) -> EngineOffer:
    """The one that is chosen where a model leaves the choice."""
    return self.workers[0].engines.first

  @property
  def loading(self) -> dict[str, float]:
    """Models of which this node's shards are being loaded: how far each is, from 0 to 1; of several, the one that is behind."""
    found: dict[str, float] = {}
    for worker in self.workers:
      for model_id, done in worker.loader.loading.items():
        found[model_id] = min(done, found.get(model_id, 1.0))
    return found

  @property
  def loading_bytes(self) -> dict[str, int]:
    """What there is to read of them on this node's devices together."""
    found: Counter[str] = Counter()
    for worker in self.workers:
      found.update(worker.loader.loading_bytes)
    return dict(found)

  @property
  def unhealthy(self) -> str | None:
    """Why this node cannot serve now; None while it can."""
    if self._awaited and not self._draining:
      return f"this node is starting: it waits for {self._awaited}"
    return "this node is shutting down" if self._draining else self.planner.problem

  @property
  def leaving(self) -> bool:
    """Other nodes make no new plans with this one."""
    return self._draining or self.planner.problem is not None

  # life

  async def start(self) -> None:
    """Raises `ConfigError` when a port is taken, discovery cannot work, or a model that is to be kept is none."""
    self.plans.residents.kept = frozenset([await self._kept(name) for name in self.config.keep])
    await self._mesh.start(self)
    self.hello = getattr(self._mesh, "hello", self.hello)
    self._tasks.spawn(self.catalog.store.remember_doubts(), "what is in doubt of models")
    await self.sense.recall()
    await self._discovery.start(self.hello, self._mesh.offer)
    self._awaited = ""

  async def _kept(self, name: str) -> str:
    try:
      return (await self.catalog.find(await self.meant(name))).id
    except ModelNotFoundError as error:
      raise ConfigError(f"--keep: {error.message}") from error

  async def drain(self, grace_s: float) -> bool:
    """Take nothing new and let what runs here finish; False when some of it did not within `grace_s`.

    What is left then goes on elsewhere where it can: its entry nodes see this one leave.
    """
    self._draining = True
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline:
      if not len(self.desk) and self.plans.idle:
        return True
      await asyncio.sleep(_DRAIN_POLL_S)
    return False

  async def stop(self) -> None:
    """Leave the ring. Idempotent; no task, thread or socket is left."""
    self._draining = True
    await self._discovery.stop()
    await self.planner.close()
    await self.plans.close()
    await self.catalog.store.close()
    await self._mesh.stop()
    await self._tasks.close()
    await asyncio.gather(*(worker.close() for worker in self.workers))

  def hold_back(self, awaited: str) -> None:
    """Serve nobody until what is named here has come; "" ends that."""
    self._awaited = awaited

  async def wait_for_peers(self, count: int, timeout_s: float) -> bool:
    """Until `count` other nodes are linked; False when that took longer than `timeout_s`."""
    try:
      async with asyncio.timeout(timeout_s):
        while len(self._mesh.peers()) < count:
          self._joined.clear()
          await self._joined.wait()
    except TimeoutError:
      return False
    return True

  # topology and plans

  def names(self) -> dict[str, str]:
    """What people call this node and those that it is linked to, by id: each once."""
    peers = self._mesh.peers()
    return distinct({self.node_id: self.hello.name} | {node_id: peer.hello.name for node_id, peer in peers.items()})

  def topology(self) -> Topology:
    """This node and those that it is linked to."""
    return self.planner.topology(self.hello)

  @property
  def rooms(self) -> tuple[tuple[str, PlanRoom], ...]:
    """Of all plans that are open, each with the node where it begins."""
    return rooms_of(self.node_id, self.plans, self._mesh.peers())

  def refusals(self) -> list[str]:
    """Why nodes that were seen or dialed are no peers, latest last."""
    return [*self._discovery.refusals(), *self._mesh.refusals()]

  def problems(self) -> list[str]:
    """Those of them that are wrong now, and not as the node's user wants it."""
    return [*self._discovery.problems(), *self._mesh.problems()]

  @property
  def mesh(self) -> Mesh:
    return self._mesh

  # requests of this node's clients

  async def meant(self, name: str | None) -> str:
    """The name of the model that a client means: what an alias stands for; none, or a `gpt-*` that nobody has, is the default one."""
    wanted = (name or self.config.default_model).removesuffix(":latest")
    if (target := self.aliases.target(wanted)) is not None:
      return target
    if wanted.startswith("gpt-"):
      try:
        await self.catalog.find(wanted)
      except ModelNotFoundError:
        return self.config.default_model
    return wanted

  async def model(self, name: str | None) -> ModelInfo:
    """The model that a client means, its head fetched where it is missing. Raises `ModelNotFoundError`, `DownloadError`."""
    wanted = await self.meant(name)
    self.catalog.store.vouch(wanted)
    info = await self.files.model(wanted)
    if info.id in self.catalog.replaced:
      await self._let_go(info.id)
    return info

  def _on_false(self, model_id: str) -> None:
    for name in self.catalog.names_of(model_id):
      self._tasks.spawn(self._drop_false(name), f"drop {name}")

  async def _drop_false(self, model_id: str) -> None:
    """Close plans of a model of which something false was loaded, once their requests have ended."""
    while model_id in self.catalog.replaced:
      await self._let_go(model_id)
      await asyncio.sleep(_DROP_EVERY_S)

  async def _let_go(self, model_id: str) -> None:
    """Close plans that were loaded from files that are no longer there, as soon as no request runs on them."""
    try:
      await self.plans.close_model(model_id)
      self.catalog.replaced.discard(model_id)
    except ModelInUseError:
      log(1, "%s was replaced on disk, but requests still run on what was there before", model_id)

  def fetch_in_background(self, entry: ModelEntry) -> None:
    """Bring the whole model here; how it goes is told by its progress, failures included."""
    async def work() -> None:
      try:
        await self.catalog.store.fetch(entry)
      except ExoError as error:
        log(1, "%s was not fetched: %s", entry.id, error)

    self._tasks.spawn(work(), f"fetch {entry.id}")

  async def delete_model(self, model_id: str) -> Removed:
    """Remove a model from this node's disk, memory and caches.

    Raises `ModelNotFoundError`, `ModelInUseError`, `InvalidRequestError` for a folder of the user's own.
    """
    name = (await self.catalog.store.removable(model_id)).id  # before anything is closed for it
    for plans_of in self.catalog.names_of(name):
      await self.plans.close_model(plans_of)
    removed = await self.catalog.delete(name)
    self.plans.forget(name)
    self.sharing.forget(name)
    return removed

  @asynccontextmanager
  async def generation(self, spec: GenerationSpec, model: ModelInfo) -> AsyncIterator[Generation]:
    """Run a request on the ring as it is now; see `EntryDesk.generation`.

    Raises `StartingError`, `DrainingError`, and `InvalidRequestError` for tokens that the model does not know: one of them
    would fail the whole step that it is part of.
    """
    model.check_words(spec.prompt_ids)
    if self._awaited and not self._draining:
      raise StartingError(f"this node is starting: it waits for {self._awaited}")
    if self._draining:
      raise DrainingError("this node is shutting down: ask another node of the ring")
    ring = ModelRing(self.planner, self.hello, model)
    async with self.desk.generation(spec, ring, self.config.chatgpt_api_response_timeout) as generation:
      yield generation
    self.sense.answered(model)

  # messages

  def send(self, node_id: str, message: Message) -> None:
    """To any node, this one included. Raises `PeerUnreachableError`."""
    if node_id == self.node_id:
      self.message(self.node_id, message)
    else:
      self._mesh.send(node_id, message)

  async def call(self, node_id: str, message: Message, timeout_s: float) -> Message:
    if node_id == self.node_id:
      return await self.answer(self.node_id, message)
    return await self._mesh.call(node_id, message, timeout_s)

  def message(self, sender: str, message: Message) -> None:
    match message:  # the most frequent first
      case Frame() | StepResult():
        self.plans.on_message(sender, message)
      case TokenDelivery():
        self.desk.on_delivery(sender, message)
      case DownloadNews():
        self.sharing.on_news(sender, message)
      case PromptProgress():
        self.desk.on_progress(sender, message)
      case RequestFailed():
        self.desk.on_failed(sender, message)
      case _:
        self.plans.on_message(sender, message)

  def peer_joined(self, peer: Hello) -> None:
    self._joined.set()
    self.meter.peer_events["joined"] += 1
    self._called[peer.node_id] = called(peer.node_id, peer.name)
    log(1, "%s joined: %s, engine %s", self._called[peer.node_id], peer.capabilities, peer.engine)
    for tell in (self.desk.peer_joined, self.sharing.peer_joined):
      _tell(tell, peer.node_id)

  def peer_left(self, node_id: str, reason: str) -> None:
    self.meter.peer_events["left"] += 1
    log(1, "%s left: %s", self._called.pop(node_id, node_id), reason)
    _tell(self.planner.peer_left, node_id)
    _tell(self.plans.peer_left, node_id, reason)
    _tell(self.desk.peer_left, node_id, reason)
    _tell(self.sharing.peer_left, node_id)
    _tell(self.ring_models.peer_left, node_id)

  def awaits(self, request_id: str) -> bool:
    return self.desk.has(request_id)

  async def answer(self, sender: str, message: Message) -> Message:
    match message:
      case OpenPlan():
        if sender != self.node_id:
          await self._check_plan(sender, message)
        return await self.plans.open(message)
      case GiveWay():
        self.plans.residents.on_give_way(sender, message)
        return Done()
      case ShrinkLease():
        return await self.plans.leases.on_shrink(sender, message)
      case GrowLease():
        return await self.plans.leases.on_grow(sender, message)
      case ListModels():
        return await self.ring_models.answer(message.model_id)
      case FindModel() | FindBlocks() | ReadRange():
        return await self.sharing.answer(message)
      case FindRecord() | ChangeRecord():
        return await self.records.answer(message)
      case Submit():
        if self._draining and sender != self.node_id:
          raise DrainingError(f"{self.node_id} is shutting down", node=self.node_id)
        if message.request.entry_node != sender:
          raise ProtocolError(f"{sender} cannot ask for {message.request.entry_node}")
        if sender != self.node_id:
          self._bounds.note_plan(sender, message.open.plan.plan_id)
          self._bounds.check_prompt(
              message.request, self.catalog.context_of(message.open.plan.model_id, message.open.file)
          )
        await self.plans.submit(message)
        return Done()
      case _:
        raise ExoError(f"{type(message).__name__} is no call")

  async def _check_plan(self, sender: str, message: OpenPlan) -> None:
    """Raises what keeps another node's plan from being tried here: no node that knows this one would have made it."""
    plan = message.plan
    self._bounds.note_plan(sender, plan.plan_id)
    stage = plan.stages[message.stage]
    worker = next((w for w in self.workers if stage.by == (self.node_id, w.name)), None)
    if worker is None:  # opening it says so
      return
    shard = stage.shard
    try:
      checkpoint = await self.catalog.checkpoint(shard.model_id, message.file)
      is_here = await self.catalog.is_here(shard.model_id, message.file)
      needed = worker.loader.needed_bytes(shard, checkpoint, plan.loaded_for)
    except Exception as error:  # noqa: BLE001 - whatever it is, opening the plan meets it too and tells everybody of it
      log(2, "%s cannot be looked at for %s: %s", shard, sender, in_words(error))
      self._bounds.note_failure(sender, error)
      return
    self._bounds.check_stage(shard, checkpoint.config.n_layers, needed, worker.offered_bytes)
    if not self.catalog.store.is_vouched(shard.model_id) and not is_here:
      self._bounds.note_fetch(shard.model_id, needed)

  def heartbeat(self) -> Heartbeat:
    usable_mb = {worker.name: self.planner.usable_mb(worker.name) for worker in self.workers}
    return heartbeat_of(self.plans, usable_mb, self.meter, self._mesh.peers(), self.leaving, self._sensors.latest())


def _tell(who: Callable[..., None], *what: str) -> None:
  """Of a node that came or went: one part's fault keeps it from no other."""
  try:
    who(*what)
  except Exception as error:  # noqa: BLE001 - whatever it is, the others must be told
    log(0, "%s failed: %s", who.__qualname__, in_words(error))
