"""What an engine of a worker offers: what it can run there and how well, as every node of the ring is told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from exo.inference.model_facts import ModelFacts
from exo.inference.repertoire import Repertoire
from exo.topology.model_size import ModelSize
from exo.topology.weight_memory import WeightMemory

PROMPT_TOKENS, DECODED_TOKENS = 512, 128  # what engines are compared by, as one stream
_PerSecond = Annotated[float, msgspec.Meta(gt=0, lt=1e9)]  # checked where it comes from another node


@dataclass(frozen=True, slots=True)
class EngineSpeed:
  """What an engine was measured to do with a small model on this device, in tokens a second."""
  prompt: _PerSecond
  decode: _PerSecond

  @property
  def seconds(self) -> float:
    """For the prompt and the text that engines are compared by."""
    return PROMPT_TOKENS / self.prompt + DECODED_TOKENS / self.decode


@dataclass(frozen=True, slots=True)
class EngineOffer:
  """One engine on one device. `version` is its library's, "" where it has none.

  `rank` orders engines that have not been measured, the highest first; below 0 an engine is used only where it is asked for by
  name. `reason` completes "because …". `missing` is what must be installed before it can run anything here, or how its
  library is broken; "" where neither is. `weights` is what a weight takes in its memory, `rounds` whether floats are rounded
  for that although nobody has asked for it. `devices` are the short names of those of this machine that it can use, the best
  first; with `any_device` it takes every name. `preferred`: on CPUs it is chosen for what it can run and has the memory for, however
  fast others are.
  """
  name: str
  device: str
  reason: str
  rank: int
  version: str = ""
  missing: str = ""
  repertoire: Repertoire = field(default_factory=Repertoire)
  weights: WeightMemory = field(default_factory=WeightMemory)
  speed: EngineSpeed | None = None
  rounds: bool = False
  devices: tuple[str, ...] = ("cpu", )
  any_device: bool = False
  preferred: bool = False

  @property
  def available(self) -> bool:
    """Whether it can run anything here."""
    return not self.missing

  def cannot(self, facts: ModelFacts) -> str | None:
    """Why this engine cannot run a model here, its name first; None where it can."""
    # of some it can only be told where they are installed what they would run
    known = not self.missing or bool(self.repertoire.text_models) or self.repertoire.reads_files
    why = self.repertoire.cannot(facts) if known else None
    why = why or self.missing  # to install it does not help where it could not run the model either
    return f"{self.name} {why}" if why else None


def in_order(offers: Iterable[EngineOffer]) -> tuple[EngineOffer, ...]:
  """The engines of a worker, the one to be used first.

  Preferred ones, where there is no GPU, then measured ones by their time, before those that have not been; what is no choice by itself and
  what cannot run comes last.
  """
  offers = tuple(offers)
  on_cpu = not any(offer.available and device.startswith("gpu") for offer in offers for device in offer.devices)

  def key(offer: EngineOffer) -> tuple[bool, bool, bool, float, int, str]:
    seconds = math.inf if offer.speed is None else offer.speed.seconds
    return bool(offer.missing), offer.rank < 0, not (offer.preferred and on_cpu), seconds, -offer.rank, offer.name

  return tuple(sorted(offers, key=key))


@dataclass(frozen=True, slots=True)
class Here:
  """What decides between the engines of one worker beside the model: `settled`, which has run it there before, and whether it is so
  large (`size`; None where nobody knows) that memory does, of which the worker offers so much.
  """
  settled: str | None = None
  size: ModelSize | None = None
  offered_bytes: int = 0

  def lacking(self, offer: EngineOffer) -> int:
    """Bytes that the worker does not have of what the model as a whole would take in the engine's memory."""
    return 0 if self.size is None else max(0, offer.weights.whole_bytes(self.size) - self.offered_bytes)


def able(offers: Sequence[EngineOffer], facts: ModelFacts, here: Here = Here()) -> list[EngineOffer]:
  """Those of a worker's engines, which stand in its order, that can run a model, the one to be used first.

  Exactness decides, where speed and memory are nobody's concern: small models of floats go to an engine that does not round.
  Memory decides where it is short: a model goes to an engine with which it fits on the worker as a whole, else to the one that lacks
  least. Where there is memory, one that computes as the model's authors do comes before one that is known not to.
  """
  def key(offer: EngineOffer) -> tuple[bool, bool, bool, bool, int]:
    lacking = here.lacking(offer)
    rounds = offer.rounds and facts.is_small_float
    deviates = any(found.is_of(offer.name) for found in facts.deviations)
    return offer.name != here.settled, lacking > 0, deviates, rounds, lacking

  return sorted((offer for offer in offers if offer.cannot(facts) is None), key=key)


def choose(offers: Sequence[EngineOffer], facts: ModelFacts, here: Here = Here()) -> EngineOffer | None:
  """The first of those that are able; None where there is none."""
  return next(iter(able(offers, facts, here)), None)


@dataclass(frozen=True, slots=True)
class Suitability:
  """What a worker can do for a model: `offer` is the engine that would run it, with which memory is reckoned.

  `cannot` says why there is none. `whole_only`: no engine there runs a part of it.
  """
  offer: EngineOffer | None = None
  cannot: str | None = None
  whole_only: bool = False


def suitability(offers: Sequence[EngineOffer], facts: ModelFacts, here: Here = Here()) -> Suitability:
  """Of a worker's engines, which stand in its order, for a model."""
  first = choose(offers, facts, here)
  if first is None:
    return Suitability(cannot=why_none(offers, facts))
  cutting = choose([offer for offer in offers if offer.repertoire.can_cut(facts)], facts, here)
  return Suitability(cutting or first, whole_only=cutting is None)


def why_none(offers: Sequence[EngineOffer], facts: ModelFacts) -> str:
  """Each of a worker's engines with the reason why it cannot run the model."""
  return "; ".join(why for offer in offers if (why := offer.cannot(facts)) is not None) or "it has no engine"
