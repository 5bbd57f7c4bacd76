"""The engines of one worker: which of them runs a model, each imported when it is first used, on the device thread."""

from __future__ import annotations

from collections.abc import Sequence

from exo.errors import EngineUnavailableError, UnsupportedModelError, in_words
from exo.inference.engine import InferenceEngine
from exo.inference.engines import load_engine
from exo.inference.model_facts import ModelFacts
from exo.inference.offer import EngineOffer, able
from exo.inference.shard import Shard
from exo.log import log


class WorkerEngines:
  """`offers` are those for the worker's device, in the order of choice. There is at least one that can run something."""
  def __init__(self, offers: Sequence[EngineOffer]) -> None:
    self.offers = tuple(offers)
    self._instances: dict[str, InferenceEngine] = {}
    self._broken: dict[str, str] = {}  # by name, why not even its library works

  @property
  def first(self) -> EngineOffer:
    """The one that is chosen where a model leaves the choice."""
    return next((offer for offer in self.offers if offer.name not in self._broken), self.offers[0])

  def able(self, facts: ModelFacts, shard: Shard) -> list[EngineOffer]:
    """Those that can run a part of a model, the one to be used first. Raises `UnsupportedModelError` where none can."""
    found = [offer for offer in able(self.offers, facts) if self._cannot(offer, facts, shard) is None]
    if found:
      return found
    reasons = "; ".join(why for offer in self.offers if (why := self._cannot(offer, facts, shard)) is not None)
    raise UnsupportedModelError(f"no engine here can run {shard}: {reasons}")

  def _cannot(self, offer: EngineOffer, facts: ModelFacts, shard: Shard) -> str | None:
    if (why := offer.cannot(facts)) is not None:
      return why
    if (why := self._broken.get(offer.name)) is not None:
      return f"{offer.name} is broken: {why}"
    if not (shard.is_first and shard.is_last) and not offer.repertoire.can_cut(facts):
      return f"{offer.name} can only run it whole, on one worker"
    return None

  def instance(self, name: str) -> InferenceEngine:
    """On the device thread. Raises `EngineUnavailableError` where the engine's library does not work."""
    if name not in self._instances:
      try:
        self._instances[name] = load_engine(name)
      except BaseException as error:  # a library may end the process, too, and a missing symbol is no ImportError
        raise EngineUnavailableError(f"the library of engine {name} does not work: {in_words(error)}") from error
    return self._instances[name]

  @property
  def in_use(self) -> tuple[str, ...]:
    """Those that have been imported; before there are any, the one that would be first."""
    return tuple(self._instances) or (self.first.name, )

  def renew(self) -> tuple[str, ...]:
    """From now on new instances of those that were in use, which are named, and what was broken may be tried again."""
    names = self.in_use
    self._instances.clear()
    self._broken.clear()
    return names

  def give_up(self, name: str, why: str) -> bool:
    """Do without an engine whose library does not work; False where there is no other."""
    others = [o for o in self.offers if o.available and o.name != name and o.name not in self._broken]
    if others:
      log(0, "engine %s does not work on this node, which goes on with %s: %s", name, others[0].name, why)
      self._broken[name] = why
      self._instances.pop(name, None)
    return bool(others)
