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

  def unused(self, worker: Worker, plan: RingPlan, but_model: str | None) -> list[OpenedPlan]:
    """Those that may give way for a plan and serve nobody as far as is known here, the one first that was used longest ago."""
    others = self._others(worker, plan, but_model)
    return sorted((o for o in others if self.may_go(o.plan, o, plan.plan_id)), key=lambda opened: opened.used_at)

  def may_go(self, plan: RingPlan, opened: OpenedPlan | None, wanted_by: str) -> bool:
    """Whether a plan serves nobody; `opened` is what is open of it here. Of two whose requests wait until they are open, each for
    the other's room, the one with the greater id gives way."""
    unused = opened is None or opened.unused
    return unused and (wanted_by < plan.plan_id or not self._awaited(plan.plan_id))

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
