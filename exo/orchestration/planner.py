"""Which ring serves a model now: of the workers that are there, those that can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from exo.errors import (
    EngineUnavailableError,
    ExoError,
    ModelRefusedError,
    ModelTooLargeError,
    PeerUnreachableError,
    StageSickError,
    UnsupportedModelError,
)
from exo.inference.engine_news import EngineNews
from exo.log import log
from exo.networking.mesh import Mesh
from exo.networking.messages import Absolve, OpenPlan
from exo.networking.peer_messages import Ailment, Hello, WorkerOffer
from exo.oldest import forget_oldest
from exo.orchestration.left_out import LeftOut
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.model_fit import RingWorker
from exo.orchestration.plan_book import PlanBook
from exo.orchestration.plan_host import PlanHost
from exo.orchestration.plan_start import Call
from exo.orchestration.refused_models import RefusedModels
from exo.orchestration.stage_runner import Send
from exo.system_figures import memory
from exo.topology.loaded_for import LoadedFor
from exo.topology.placements import Strategy
from exo.topology.ring_plan import RingPlan, Whom, WorkerId, names_of
from exo.topology.ring_state import ModelNeeds, RingState, WorkerState
from exo.topology.topology import PeerConnection, Topology

_MB = 2**20
_FREE_MEMORY_EVERY_S = 2.0
_PREPARE_TIMEOUT_S = 3600.0  # a download may be part of it
# until a sick node's own heartbeat tells of it; of numbers that were bad when they arrived it may never know
_MARK_S, _LONG_MARK_S = 5.0, 60.0
_MAX_MARKS = 1024

NO_RING = (ModelTooLargeError, PeerUnreachableError, EngineUnavailableError)


@dataclass(frozen=True, slots=True)
class _Mark:
  """A worker failed a model for a request of this node's clients."""
  ailment: Ailment
  until: float


class Planner:
  """`wanted` is what models are loaded for, `problems` what keeps nodes from being peers, latest last."""
  def __init__(
      self, node_id: str, mesh: Mesh, place: Strategy, wanted: LoadedFor, plans: PlanHost, send: Send, call: Call,
      problems: Callable[[], Sequence[str]]
  ) -> None:
    self._node_id, self._mesh, self.place, self.wanted, self._plans = node_id, mesh, place, wanted, plans
    self._send, self._call, self._problems = send, call, problems
    self._book = PlanBook(self._open_stages)
    self._marks: dict[tuple[str, WorkerId], _Mark] = {}  # by fingerprint
    self._free_bytes, self._free_asked_at = 0, float("-inf")
    self.refused = RefusedModels()
    self._left_out = LeftOut()

  async def close(self) -> None:
    await self._book.close()

  def peer_left(self, node_id: str) -> None:
    self._book.peer_left(node_id)
    for key in [key for key in self._marks if key[1].node_id == node_id]:
      del self._marks[key]

  def topology(self, here: Hello) -> Topology:
    """This node and those that it is linked to."""
    nodes = {here.node_id: here.capabilities}
    edges = set()
    for node_id, peer in self._mesh.peers().items():
      nodes[node_id] = peer.hello.capabilities
      edges |= {
          PeerConnection(here.node_id, node_id, peer.interface),
          PeerConnection(node_id, here.node_id, peer.interface)
      }
    active = next((plan.first.node_id for plan in self._plans.plans), None)
    return Topology(nodes, frozenset(edges), active)

  def plan(self, here: Hello, model: ModelInfo, avoid: frozenset[Whom] = frozenset()) -> RingPlan:
    """The ring for a model as it would be now, without some nodes or workers; workers that cannot run it only where there is no
    other way.

    Raises `ModelTooLargeError`, `PeerUnreachableError`, `EngineUnavailableError` where no ring is left, `UnsupportedModelError`
    where no engine of the ring can run it, `ModelRefusedError`.
    """
    if (reason := self.refused.reason(model.fingerprint)) is not None:
      raise ModelRefusedError(reason, model=model.id)
    if sick := {w: why for w, why in self._sick(model.fingerprint).items() if not _among(w, avoid)}:
      try:
        return self._plan(here, model, avoid, sick)
      except NO_RING as error:
        log(1, "%s is tried on workers that could not run it before: %s", model.id, error)
    return self._plan(here, model, avoid, {})

  def _plan(self, here: Hello, model: ModelInfo, avoid: frozenset[Whom], sick: Mapping[WorkerId, str]) -> RingPlan:
    ring = self._ring_state(here, model, avoid, sick)
    if ring.workers and self._left_out.note(model, ring, sick):
      raise UnsupportedModelError(f"no engine of this ring can run {model.id}: {ring.why_not()}")
    if not ring.workers and (problem := self.problem) is not None:
      raise EngineUnavailableError(f"{problem}, and there is no other node")
    kv_tokens = self.wanted.kv_tokens(model.checkpoint.config.max_context)
    needs = ModelNeeds(model.id, model.size, kv_tokens, model.file)
    try:
      return replace(self.place(needs, ring), loaded_for=self.wanted)
    except ModelTooLargeError as error:
      if not (problems := self._problems()):
        raise
      text = f"{error}. Perhaps a node is missing that could help: {problems[-1]}"
      raise ModelTooLargeError(text, **error.details) from error

  def _ring_state(
      self, here: Hello, model: ModelInfo, without: Collection[Whom], sick: Mapping[WorkerId, str]
  ) -> RingState:
    """The ring for a model without some nodes and workers; `sick` says why others can run nothing of it."""
    found = []
    for worker in self.workers(here):
      if not _among(worker.state.by, without):
        state = worker.for_model(model.id, model.facts, model.file.headers, model.size)
        found.append(replace(state, cannot=state.cannot or sick.get(state.by)))
    return RingState(tuple(found))

  def workers(self, here: Hello) -> tuple[RingWorker, ...]:
    """Those that new plans can be made of, whatever the model."""
    told = {
        WorkerId(self._node_id, worker.name): (
            self.usable_mb(worker.name), worker.engines.news, self._plans.residents.pinned_mb(worker)
        )
        for worker in self._plans.workers
    }
    for node_id, peer in self._mesh.peers().items():
      if peer.heartbeat is not None:
        told |= {
            WorkerId(node_id, beat.name): (beat.usable_mb, beat.news, beat.pinned)
            for beat in peer.heartbeat.workers
        }
    found = []
    for worker, (hello, offer) in self._workers(here).items():
      usable_mb, news, pinned = told.get(worker, (offer.memory_mb, EngineNews(), ()))
      memory_bytes = (offer.memory_mb * _MB, usable_mb * _MB)
      state = WorkerState(*worker, hello.incarnation, *memory_bytes)
      pinned_bytes = tuple((name, mb * _MB) for name, mb in pinned)
      found.append(RingWorker(state, news.of(offer.engines), news.settled, pinned_bytes))
    return tuple(found)

  def _workers(self, here: Hello) -> dict[WorkerId, tuple[Hello, WorkerOffer]]:
    """Those that new plans can be made of, whatever the model: all but those of nodes that leave, and those that are broken."""
    hellos, broken = [here], {WorkerId(here.node_id, w.name) for w in self._plans.workers if w.health.broken}
    for node_id, peer in self._mesh.peers().items():
      if peer.suspect or (peer.heartbeat is not None and peer.heartbeat.leaving):
        continue
      hellos.append(peer.hello)
      if peer.heartbeat is not None:
        broken |= {WorkerId(node_id, worker.name) for worker in peer.heartbeat.workers if worker.problem}
    found = {WorkerId(hello.node_id, offer.name): (hello, offer) for hello in hellos for offer in hello.workers}
    return {worker: told for worker, told in found.items() if worker not in broken}

  @property
  def problem(self) -> str | None:
    """Why no worker of this node can compute; None while one can."""
    problems = [worker.health.problem for worker in self._plans.workers]
    return "; ".join(problem for problem in problems if problem) if all(problems) else None

  def usable_mb(self, name: str) -> int:
    """Memory that a worker of this node could use: its part of what is free (asked of the system every few seconds), and what
    it holds already."""
    now = time.monotonic()
    if now - self._free_asked_at > _FREE_MEMORY_EVERY_S:
      self._free_bytes, self._free_asked_at = memory().available, now
    workers = {worker.name: worker for worker in self._plans.workers}
    offered = sum(worker.offered_bytes for worker in workers.values())
    part = workers[name].offered_bytes / offered if offered else 1 / len(workers)
    return int(self._free_bytes * part + workers[name].loaded_bytes) // _MB

  def open_plan(self, here: Hello, model: ModelInfo, avoid: frozenset[Whom]) -> OpenPlan:
    """What new requests of the model are to open. Raises as `plan` does."""
    plan = self.plan(here, model, avoid)
    peers = self._mesh.peers()
    addresses = tuple((n, f"{peers[n].address.rpartition(':')[0]}:{peers[n].hello.port}") for n in plan.node_ids
                      if n in peers)
    best = OpenPlan(plan, addresses)

    def usable(used: OpenPlan) -> bool:
      out, there = avoid | self.sick(model.fingerprint), self._workers(here)
      return used.fingerprint == best.fingerprint and all(w in there and not _among(w, out) for w in used.plan.workers)

    return self._book.choose(best, usable)

  async def _open_stages(self, message: OpenPlan) -> None:
    calls = [(stage.node_id, replace(message, stage=i)) for i, stage in enumerate(message.plan.stages)]
    await asyncio.gather(*(self._call(node_id, call, _PREPARE_TIMEOUT_S) for node_id, call in calls))

  # sickness

  def ailments(self) -> dict[str, tuple[Ailment, ...]]:
    """What workers cannot run, by node, as it says itself or as requests of this node's clients have found."""
    found = {n: p.heartbeat.ailments for n, p in self._mesh.peers().items() if p.heartbeat is not None}
    found[self._node_id] = self._plans.ailments()
    now = time.monotonic()
    for key, mark in list(self._marks.items()):
      if mark.until <= now:
        del self._marks[key]
      elif all((known.fingerprint, known.worker) != (key[0], key[1].worker) for known in found.get(key[1].node_id, ())):
        found[key[1].node_id] = (*found.get(key[1].node_id, ()), mark.ailment)
    return {node_id: told for node_id, told in found.items() if told}

  def left_out(self) -> dict[str, tuple[Ailment, ...]]:
    """By node, why its workers take no part in plans of models: ailments, and what none of their engines can run."""
    ailments = self.ailments()
    nodes = (self._node_id, *self._mesh.peers())
    found = {node_id: (*ailments.get(node_id, ()), *self._left_out.told(node_id)) for node_id in nodes}
    return {node_id: told for node_id, told in found.items() if told}

  def sick(self, fingerprint: str) -> frozenset[WorkerId]:
    """Workers that cannot run a model."""
    return frozenset(self._sick(fingerprint))

  def _sick(self, fingerprint: str) -> dict[WorkerId, str]:
    """The same with their reasons."""
    return {
        WorkerId(node_id, a.worker): a.reason
        for node_id, told in self.ailments().items()
        for a in told if a.fingerprint == fingerprint
    }

  def mark(self, worker: WorkerId, model: ModelInfo, error: ExoError) -> None:
    """A request met this error on that worker."""
    if worker.node_id == self._node_id and isinstance(error, StageSickError):
      return  # it knows by itself, and when it is over
    forget_oldest(self._marks, _MAX_MARKS - 1)
    lasts_s = _MARK_S if isinstance(error, StageSickError) or error.details.get("recomputed") else _LONG_MARK_S
    ailment = Ailment(model.id, model.fingerprint, error.message, worker.worker)
    self._marks[model.fingerprint, worker] = _Mark(ailment, time.monotonic() + lasts_s)
    log(1, "%s takes no part in %s for now: %s", worker, model.id, error)

  def acquit(self, workers: Collection[WorkerId], model: ModelInfo, request_id: str) -> None:
    """The same request made bad numbers on all of these workers: it was not their doing."""
    self.refused.strike(model.id, model.fingerprint, request_id, list(names_of(workers).values()))
    for worker in workers:
      self._marks.pop((model.fingerprint, worker), None)
    for node_id in {worker.node_id for worker in workers}:
      try:
        self._send(node_id, Absolve(model.id, model.fingerprint))
      except PeerUnreachableError:
        log(2, "%s is gone, and need not be told", node_id)


def _among(worker: WorkerId, whom: Collection[Whom]) -> bool:
  return worker in whom or worker.node_id in whom


@dataclass(frozen=True, slots=True)
class ModelRing:
  """One model's plans, as a request sees them."""
  planner: Planner
  here: Hello
  model: ModelInfo

  def open_plan(self, avoid: frozenset[Whom]) -> OpenPlan:
    """As `Planner.open_plan`."""
    return self.planner.open_plan(self.here, self.model, avoid)

  def failed(self, worker: WorkerId, error: ExoError) -> None:
    """As `Planner.mark`."""
    self.planner.mark(worker, self.model, error)

  def is_sick(self, worker: WorkerId) -> bool:
    """Whether that worker cannot run the model now."""
    return worker in self.planner.sick(self.model.fingerprint)

  def acquit(self, workers: Collection[WorkerId], request_id: str) -> None:
    """As `Planner.acquit`."""
    self.planner.acquit(workers, self.model, request_id)
