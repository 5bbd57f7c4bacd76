"""The engines of one worker: which of them runs a model, each imported when it is first used, on the device thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from exo.errors import EngineUnavailableError, UnsupportedModelError, in_words, one_line, without_paths
from exo.inference.engine import InferenceEngine
from exo.inference.engine_news import MAX_REASON, EngineNews
from exo.inference.engines import load_engine
from exo.inference.model_facts import ModelFacts
from exo.inference.offer import EngineOffer, EngineSpeed, Here, able
from exo.inference.shard import Shard
from exo.log import log
from exo.topology.model_size import ModelSize


class WorkerEngines:
  """`greeted` are those for the worker's device as its node's greeting has them, in the order of choice. There is at least one
  that can run something. `offered_bytes` is the memory that the worker gives to models, `news` what has changed since.
  """
  def __init__(self, greeted: Sequence[EngineOffer], offered_bytes: int) -> None:
    self._greeted, self._offered_bytes = tuple(greeted), offered_bytes
    self.news = EngineNews()
    self._instances: dict[str, InferenceEngine] = {}

  @property
  def offers(self) -> tuple[EngineOffer, ...]:
    """As they are now, in the order of choice."""
    return self.news.of(self._greeted)

  @property
  def first(self) -> EngineOffer:
    """The one that is chosen where a model leaves the choice."""
    return self.offers[0]

  def learn(self, speeds: Mapping[str, EngineSpeed]) -> None:
    """What engines were measured to do decides from now on, but for the models that have been run here before."""
    greeted = {offer.name: offer.speed for offer in self._greeted}
    self.news = replace(self.news, speeds={name: s for name, s in speeds.items() if s != greeted.get(name)})

  def settle(self, fingerprint: str, name: str) -> None:
    """A model is run with that engine, and will be whenever it is loaded again: a conversation may go on with it."""
    self.news = self.news.settling(fingerprint, name)

  def able(self, facts: ModelFacts, shard: Shard, size: ModelSize, fingerprint: str) -> list[EngineOffer]:
    """Those that can run a part of a model of that size, the one to be used first. Raises `UnsupportedModelError` where none can.
    """
    offers = self.offers
    ordered = able(offers, facts, Here(self.news.settled.get(fingerprint), size, self._offered_bytes))
    if found := [offer for offer in ordered if self._cannot(offer, facts, shard) is None]:
      return found
    reasons = "; ".join(why for offer in offers if (why := self._cannot(offer, facts, shard)) is not None)
    raise UnsupportedModelError(f"no engine here can run {shard}: {reasons}")

  def _cannot(self, offer: EngineOffer, facts: ModelFacts, shard: Shard) -> str | None:
    if (why := offer.cannot(facts)) is not None:
      return why
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
    self.news = replace(self.news, broken={})
    return names

  def give_up(self, name: str, why: str) -> bool:
    """Do without an engine whose library does not work; False where there is no other."""
    others = [offer for offer in self.offers if offer.available and offer.name != name]
    if others:
      log(0, "engine %s does not work on this node, which goes on with %s: %s", name, others[0].name, why)
      told = without_paths(one_line(why))[:MAX_REASON]
      self.news = replace(self.news, broken={**self.news.broken, name: told})
      self._instances.pop(name, None)
    return bool(others)
