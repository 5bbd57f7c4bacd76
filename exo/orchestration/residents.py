"""What is loaded on a worker beside a plan that wants its room: who gives way, who stays, and who is waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from exo.orchestration.opened_plan import OpenedPlan
from exo.topology.ring_plan import RingPlan
from exo.worker.worker import Worker

_MB = 2**20


class Residents:
  """`plans` are those that are open on a node, as they are at any moment, and `awaited` says of which of them, by its id, requests
  wait until all of its stages are open. Models that are `kept` give way for no other.
  """
  def __init__(self, plans: Iterable[OpenedPlan], awaited: Callable[[str], bool]) -> None:
    self._plans, self._awaited = plans, awaited
    self.kept: frozenset[str] = frozenset()

  def least_used(self, worker: Worker, plan: RingPlan, but_model: str | None) -> OpenedPlan | None:
    """Of those that may give way for a plan and serve nobody, the one that nobody has used for longest."""
    others = self._others(worker, plan, but_model)
    unused = (opened for opened in others if opened.unused and not self._awaited(opened.plan.plan_id))
    return min(unused, key=lambda opened: opened.used_at, default=None)

  def in_use(self, worker: Worker, plan: RingPlan, but_model: str | None) -> tuple[str, ...]:
    """The models that would give way for a plan if they served nobody."""
    return tuple(dict.fromkeys(opened.plan.model_id for opened in self._others(worker, plan, but_model)))

  def _others(self, worker: Worker, plan: RingPlan, but_model: str | None) -> list[OpenedPlan]:
    stay = {but_model, *self.kept - {plan.model_id}}
    return [opened for opened in self._plans if opened.on(worker) is not None and opened.plan.model_id not in stay]

  def pinned_mb(self, worker: Worker) -> tuple[tuple[str, int], ...]:
    """The models on a worker that give way for no other, each with what it takes of its memory."""
    found: dict[str, int] = {}
    for opened in self._plans:
      model_id, stage = opened.plan.model_id, opened.on(worker)
      if stage is not None and model_id in self.kept:
        found[model_id] = found.get(model_id, 0) + worker.taken_by(stage.loaded.model)
    return tuple((model_id, taken // _MB) for model_id, taken in found.items())
