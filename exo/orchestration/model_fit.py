"""Whether a model can be run by the engines and in the memory that there are: what every list of models says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from exo.inference.model_facts import ModelFacts
from exo.inference.offer import EngineOffer, choose, why_none
from exo.orchestration.model_profile import ModelProfile
from exo.topology.fit import Fit, Where, fit
from exo.topology.placements import Strategy
from exo.topology.ring_state import ModelNeeds, RingState, WorkerState

_UNSEEN = "nobody here has looked at it yet: it is judged when it is first asked for, or fetched (exo pull)"


@dataclass(frozen=True, slots=True)
class RingWorker:
  """A device of a node, whichever model it is for. `offers` are its engines in the order of choice; where they are not known
  it counts as able, with the `weights` of its state.
  """
  state: WorkerState
  offers: tuple[EngineOffer, ...] = ()

  def for_model(self, facts: ModelFacts) -> WorkerState:
    """With the engine that it would run this model with, or the reason why it has none."""
    if not self.offers:
      return self.state
    engine = choose(self.offers, facts)
    if engine is None:
      return replace(self.state, cannot=why_none(self.offers, facts))
    cuts = any(offer.cannot(facts) is None and offer.repertoire.can_cut(facts) for offer in self.offers)
    return replace(self.state, weights=engine.weights, whole_only=not cuts)


def fit_model(model_id: str, profile: ModelProfile, workers: Sequence[RingWorker], here: str, place: Strategy) -> Fit:
  """For the node `here` of a ring of these workers. Pure; takes milliseconds for a large model in a ring of many."""
  if profile.flaw:
    return Fit(Where.NOWHERE, reason=profile.flaw)
  facts, size = profile.facts, profile.size
  if facts is None or size is None:
    return Fit(Where.UNKNOWN, reason=_UNSEEN)
  ring = RingState(tuple(worker.for_model(facts) for worker in workers))
  return fit(ModelNeeds(model_id, size), ring, here, place)
