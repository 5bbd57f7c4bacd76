"""One model of a list: what is here, what is loaded where, what could run it, and with what all that is found out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from exo.download.model_state import ModelState, model_state
from exo.download.model_store import ModelEntry
from exo.errors import ExoError, in_words
from exo.log import log
from exo.models import BUILT_IN, Registry
from exo.orchestration.held_model import HeldModel, are_whole, held_model
from exo.orchestration.model_fit import RingWorker, fit_model
from exo.orchestration.model_profile import ModelProfile
from exo.orchestration.model_profiles import ModelProfiles
from exo.orchestration.model_sampling import model_sampling
from exo.sampling_defaults import SamplingDefaults
from exo.topology.fit import Fit, Where
from exo.topology.loaded_for import LoadedFor
from exo.topology.placements import Strategy


@dataclass(frozen=True)
class ListedModel:
  """`nodes` are those that have all its files, and `in_ring` says whether the nodes have all of them together. `loaded` are those
  that have it in memory, in ring order; none where it is not there as a whole. `loaded_context` is how many tokens a request and
  its answer may have there, where that is known, and `most_context` how many models are loaded for. `warning` is what was found out about its weights.
  """
  state: ModelState
  profile: ModelProfile
  fit: Fit
  nodes: tuple[str, ...] = ()
  in_ring: bool = False
  loaded: tuple[str, ...] = ()
  loaded_context: int | None = None
  most_context: int | None = None
  registry: Registry = BUILT_IN
  warning: str = ""

  @property
  def id(self) -> str:
    return self.state.id

  @property
  def is_ready(self) -> bool:
    """A request for it can be answered now: what it takes is on the ring's nodes, and runs there."""
    return self.in_ring and self.fit.runs

  @property
  def max_context(self) -> int | None:
    """The most tokens of a request and its answer; None where nothing is known of that, or where nothing runs it."""
    if self.loaded_context is None and not self.fit.runs:
      return None
    planned = (self.profile.context, self.fit.max_context)
    told = planned if self.loaded_context is None else (self.loaded_context, )
    return min(filter(None, (*told, self.most_context)), default=None)

  @property
  def sampling(self) -> SamplingDefaults:
    """As in `ModelInfo`."""
    return model_sampling(self.id, self.profile.sampling, self.registry)

  @property
  def known_deviations(self) -> list[str]:
    """What engines are known to compute otherwise than its authors, in sentences."""
    facts = self.profile.facts
    return [] if facts is None else facts.known_deviations

  @property
  def layers(self) -> int | None:
    return self.state.layers if self.profile.size is None else self.profile.size.n_layers


@dataclass(frozen=True)
class ModelJudge:
  """What a list is made with, as it was at one moment, so that the list can be made in another thread.

  `wanted` is what models are loaded for; `loaded` and `contexts` are as in `ListedModel`, by model; `others` is what other nodes hold, by model and node, and `refused`
  why models are at fault themselves, `warnings` what was found out about weights, by the keys of files.
  """
  profiles: ModelProfiles
  here: str
  workers: Sequence[RingWorker]
  place: Strategy
  wanted: LoadedFor
  loaded: Mapping[str, tuple[str, ...]]
  contexts: Mapping[str, int]
  others: Mapping[str, Mapping[str, HeldModel]] = field(default_factory=dict)
  refused: Mapping[str, str] = field(default_factory=dict)
  warnings: Mapping[str, str] = field(default_factory=dict)

  def listed(self, entry: ModelEntry) -> ListedModel:
    """Blocks on the disk; asks no network."""
    others = self.others.get(entry.id, {})
    profile = self._profile(entry, others.values())
    state = model_state(self.profiles.store, entry)
    if state.total_bytes is None and others:
      state = replace(state, total_bytes=max(held.total_bytes for held in others.values()))
    here = (self.here, ) if entry.path is not None else ()
    nodes = (*here, *sorted(node_id for node_id, held in others.items() if held.is_whole))
    return ListedModel(
        state, profile, self._fit(entry.id, profile), nodes,
        bool(nodes) or self._is_whole(entry, profile, others.values()), self.loaded.get(entry.id, ()),
        self.contexts.get(entry.id), self.wanted.context, self.profiles.store.registry,
        self.warnings.get(profile.file.key, "")
    )

  def _fit(self, model_id: str, profile: ModelProfile) -> Fit:
    if (fault := self.refused.get(model_id)) is not None:
      return Fit(Where.NOWHERE, reason=fault)
    found = fit_model(model_id, profile, self.workers, self.here, self.place, self.wanted)
    loaded = self.loaded.get(model_id, ())
    if not loaded or found.runs:
      return found
    # caches may have taken what it would need to be loaded once more
    return Fit(Where.HERE if set(loaded) == {self.here} else Where.RING, reason=f"it is loaded on {', '.join(loaded)}")

  def _profile(self, entry: ModelEntry, others: Collection[HeldModel]) -> ModelProfile:
    """What headers say, if only another node's, before what the registry does."""
    read = next((held.profile for held in others if held.profile.facts is not None), None)
    return self.profiles.look(entry) if read is None or entry.stamp else read

  def _is_whole(self, entry: ModelEntry, profile: ModelProfile, others: Collection[HeldModel]) -> bool:
    """Whether nodes that have parts of it have all of it together."""
    if not others:
      return False
    try:
      own = held_model(self.profiles.store, entry, profile)
    except (ExoError, OSError) as error:
      log(1, "%s: %s", entry.id, in_words(error))
      own = None
    return are_whole((*others, *(() if own is None else (own, ))))
