"""Whether a model can be run by the engines and in the memory that there are: what every list of models says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from exo.inference.model_facts import ModelFacts
from exo.inference.offer import EngineOffer, Here, suitability
from exo.orchestration.model_profile import ModelProfile
from exo.topology.fit import Fit, Where, fit
from exo.topology.loaded_for import WHAT_FITS, LoadedFor
from exo.topology.model_size import ModelSize
from exo.topology.placements import Strategy
from exo.topology.ring_state import ModelNeeds, RingState, WorkerState

_UNSEEN = "nobody here has looked at it yet: it is judged when it is first asked for, or fetched (exo pull)"


@dataclass(frozen=True, slots=True)
class RingWorker:
  """A device of a node, whichever model it is for. `engines` stand in the order of choice; where there are none, `state` says
  why. `settled` is as in `EngineNews`. `pinned` are the models that never give way for others, each with the bytes that it takes.
  """
  state: WorkerState
  engines: tuple[EngineOffer, ...] = ()
  settled: Mapping[str, str] = field(default_factory=dict)
  pinned: tuple[tuple[str, int], ...] = ()

  def for_model(self, model_id: str, facts: ModelFacts, headers: str, size: ModelSize | None = None) -> WorkerState:
    """With the engine that would run a model of these headers (`ModelFile.headers`), or the reason why there is none."""
    suits = suitability(self.engines, facts, Here(self.settled.get(headers), size, self.state.offered_bytes))
    if suits.offer is None:
      return replace(self.state, cannot=self.state.cannot or suits.cannot)
    pinned = sum(taken for name, taken in self.pinned if name != model_id)
    return replace(self.state, pinned_bytes=pinned, weights=suits.offer.weights, whole_only=suits.whole_only)


def fit_model(
    model_id: str,
    profile: ModelProfile,
    workers: Sequence[RingWorker],
    here: str,
    place: Strategy,
    wanted: LoadedFor = WHAT_FITS
) -> Fit:
  """For the node `here` of a ring of these workers, loaded for what is wanted. Pure; takes milliseconds for a large model in a ring of many."""
  if profile.flaw:
    return Fit(Where.NOWHERE, reason=profile.flaw)
  facts, size = profile.facts, profile.size
  if facts is None or size is None:
    return Fit(Where.UNKNOWN, reason=_UNSEEN)
  ring = RingState(tuple(worker.for_model(model_id, facts, profile.file.headers, size) for worker in workers))
  return fit(ModelNeeds(model_id, size, wanted.kv_tokens(profile.context)), ring, here, place)
