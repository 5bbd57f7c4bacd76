"""Which ring serves a model now: of the nodes that are there, those that can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from exo.errors import (
    EngineUnavailableError,
    ExoError,
    ModelRefusedError,
    ModelTooLargeError,
    PeerUnreachableError,
    StageSickError,
)
from exo.log import log
from exo.networking.mesh import Mesh
from exo.networking.messages import Absolve, Ailment, Hello, OpenPlan
from exo.oldest import forget_oldest
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.plan_book import PlanBook
from exo.orchestration.plan_host import PlanHost
from exo.orchestration.plan_start import Call
from exo.orchestration.refused_models import RefusedModels
from exo.orchestration.stage_runner import Send
from exo.system_figures import memory
from exo.topology.placements import Strategy
from exo.topology.ring_plan import RingPlan
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
  """A node failed a model for a request of this node's clients."""
  ailment: Ailment
  until: float


class Planner:
  """`problems` is what keeps nodes from being peers, latest last."""
  def __init__(
      self, node_id: str, mesh: Mesh, place: Strategy, plans: PlanHost, send: Send, call: Call,
      problems: Callable[[], Sequence[str]]
  ) -> None:
    self._node_id, self._mesh, self._place, self._plans = node_id, mesh, place, plans
    self._send, self._call, self._problems = send, call, problems
    self._book = PlanBook(self._open_stages)
    self._marks: dict[tuple[str, str], _Mark] = {}  # by fingerprint and node
    self._free_bytes, self._free_asked_at = 0, float("-inf")
    self.refused = RefusedModels()

  async def close(self) -> None:
    await self._book.close()

  def peer_left(self, node_id: str) -> None:
    self._book.peer_left(node_id)
    for key in [key for key in self._marks if key[1] == node_id]:
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

  def plan(self, here: Hello, model: ModelInfo, avoid: frozenset[str] = frozenset()) -> RingPlan:
    """The ring for a model as it would be now, without some nodes; those that cannot run it only where there is no other way.

    Raises `ModelTooLargeError`, `PeerUnreachableError`, `EngineUnavailableError` where no ring is left, `ModelRefusedError`.
    """
    if (reason := self.refused.reason(model.fingerprint)) is not None:
      raise ModelRefusedError(reason, model=model.id)
    if sick := {n: why for n, why in self._sick(model.fingerprint).items() if n not in avoid}:
      try:
        return self._plan(here, model, avoid, sick)
      except NO_RING as error:
        log(1, "%s is tried on nodes that could not run it before: %s", model.id, error)
    return self._plan(here, model, avoid, {})

  def _plan(self, here: Hello, model: ModelInfo, avoid: frozenset[str], sick: Mapping[str, str]) -> RingPlan:
    ring = self._ring_state(here, avoid | self._leaving_nodes(), sick)
    if not ring.workers and self._plans.worker.health.broken:
      raise EngineUnavailableError(f"{self._plans.worker.health.problem}, and there is no other node")
    try:
      return self._place(ModelNeeds(model.id, model.size), ring)
    except ModelTooLargeError as error:
      if not (problems := self._problems()):
        raise
      text = f"{error}. Perhaps a node is missing that could help: {problems[-1]}"
      raise ModelTooLargeError(text, **error.details) from error

  def _ring_state(self, here: Hello, without: Collection[str], cannot: Mapping[str, str]) -> RingState:
    """The ring without some nodes; `cannot` says why others can run nothing of the model."""
    usable_mb = {here.node_id: self.usable_mb()}
    hellos = [here]
    for node_id, peer in self._mesh.peers().items():
      hellos.append(peer.hello)
      if peer.heartbeat is not None:
        usable_mb[node_id] = peer.heartbeat.free_memory_mb
    return RingState(
        tuple(
            WorkerState(
                h.node_id, "", h.incarnation, h.capabilities.memory * _MB,
                usable_mb.get(h.node_id, h.capabilities.memory) * _MB, h.weight_memory, cannot.get(h.node_id)
            ) for h in hellos if h.node_id not in without
        )
    )

  def usable_mb(self) -> int:
    """Memory that the engine could use: what is free (asked of the system every few seconds) and what it holds already."""
    now = time.monotonic()
    if now - self._free_asked_at > _FREE_MEMORY_EVERY_S:
      self._free_bytes, self._free_asked_at = memory().available, now
    return (self._free_bytes + self._plans.worker.loaded_bytes) // _MB

  def open_plan(self, here: Hello, model: ModelInfo, avoid: frozenset[str]) -> OpenPlan:
    """What new requests of the model are to open. Raises as `plan` does."""
    plan = self.plan(here, model, avoid)
    peers = self._mesh.peers()
    addresses = tuple((n, f"{peers[n].address.rpartition(':')[0]}:{peers[n].hello.port}") for n in plan.node_ids
                      if n in peers)
    best = OpenPlan(plan, model.fingerprint, addresses)

    def usable(used: OpenPlan) -> bool:
      out, there = avoid | self._leaving_nodes() | self.sick_nodes(model.fingerprint), {self._node_id, *peers}
      return used.fingerprint == best.fingerprint and set(used.plan.node_ids) <= there - out

    return self._book.choose(best, usable)

  async def _open_stages(self, message: OpenPlan) -> None:
    await asyncio.gather(*(self._call(n, message, _PREPARE_TIMEOUT_S) for n in message.plan.node_ids))

  def _leaving_nodes(self) -> frozenset[str]:
    """Those that new plans must do without."""
    gone = {n for n, p in self._mesh.peers().items() if p.suspect or (p.heartbeat is not None and p.heartbeat.leaving)}
    return frozenset(gone | {self._node_id} if self._plans.worker.health.broken else gone)

  # sickness

  def ailments(self) -> dict[str, tuple[Ailment, ...]]:
    """What each node cannot run, as it says itself or as requests of this node's clients have found."""
    found = {n: p.heartbeat.ailments for n, p in self._mesh.peers().items() if p.heartbeat is not None}
    found[self._node_id] = self._plans.ailments.told()
    now = time.monotonic()
    for key, mark in list(self._marks.items()):
      if mark.until <= now:
        del self._marks[key]
      elif all(known.fingerprint != key[0] for known in found.get(key[1], ())):
        found[key[1]] = (*found.get(key[1], ()), mark.ailment)
    return {node_id: told for node_id, told in found.items() if told}

  def sick_nodes(self, fingerprint: str) -> frozenset[str]:
    """Those that cannot run a model."""
    return frozenset(self._sick(fingerprint))

  def _sick(self, fingerprint: str) -> dict[str, str]:
    """The same with their reasons."""
    return {n: a.reason for n, told in self.ailments().items() for a in told if a.fingerprint == fingerprint}

  def mark(self, node_id: str, model: ModelInfo, error: ExoError) -> None:
    """A request met this error on that node."""
    if node_id == self._node_id and isinstance(error, StageSickError):
      return  # it knows by itself, and when it is over
    forget_oldest(self._marks, _MAX_MARKS - 1)
    lasts_s = _MARK_S if isinstance(error, StageSickError) or error.details.get("recomputed") else _LONG_MARK_S
    ailment = Ailment(model.id, model.fingerprint, error.message)
    self._marks[model.fingerprint, node_id] = _Mark(ailment, time.monotonic() + lasts_s)
    log(1, "%s takes no part in %s for now: %s", node_id, model.id, error)

  def acquit(self, node_ids: Collection[str], model: ModelInfo, request_id: str) -> None:
    """The same request made bad numbers on all of these nodes: it was not their doing."""
    self.refused.strike(model.id, model.fingerprint, request_id, list(node_ids))
    for node_id in node_ids:
      self._marks.pop((model.fingerprint, node_id), None)
      try:
        self._send(node_id, Absolve(model.id, model.fingerprint))
      except PeerUnreachableError:
        log(2, "%s is gone, and need not be told", node_id)


@dataclass(frozen=True, slots=True)
class ModelRing:
  """One model's plans, as a request sees them."""
  planner: Planner
  here: Hello
  model: ModelInfo

  def open_plan(self, avoid: frozenset[str]) -> OpenPlan:
    """As `Planner.open_plan`."""
    return self.planner.open_plan(self.here, self.model, avoid)

  def failed(self, node_id: str, error: ExoError) -> None:
    """As `Planner.mark`."""
    self.planner.mark(node_id, self.model, error)

  def is_sick(self, node_id: str) -> bool:
    """Whether that node cannot run the model now."""
    return node_id in self.planner.sick_nodes(self.model.fingerprint)

  def acquit(self, node_ids: Collection[str], request_id: str) -> None:
    """As `Planner.acquit`."""
    self.planner.acquit(node_ids, self.model, request_id)
