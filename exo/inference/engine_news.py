"""What has changed of a worker's engines since its node's greeting told of them: heartbeats tell it, and planners mind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import msgspec

from exo.bounds import MAX_FINGERPRINT
from exo.inference.offer import EngineOffer, EngineSpeed, in_order

MAX_ENGINES = 32  # of a worker; each of them is asked when a plan is made
MAX_SETTLED = 64  # models whose engine a worker remembers
MAX_NAME, MAX_REASON = 200, 400
_Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
_Files = Annotated[str, msgspec.Meta(max_length=MAX_FINGERPRINT)]


@dataclass(frozen=True, slots=True)
class EngineNews:
  """By the names of engines: `speeds` are what they were measured to do since, `broken` says why they turned out not to work.

  `settled` is the engine that a model has been run with, by the fingerprint of its files: it stays with it, whatever comes first
  for others.
  """
  speeds: Annotated[Mapping[_Name, EngineSpeed], msgspec.Meta(max_length=MAX_ENGINES)] = field(default_factory=dict)
  broken: Annotated[Mapping[_Name, Annotated[str, msgspec.Meta(max_length=MAX_REASON)]],
                    msgspec.Meta(max_length=MAX_ENGINES)] = field(default_factory=dict)
  settled: Annotated[Mapping[_Files, _Name], msgspec.Meta(max_length=MAX_SETTLED)] = field(default_factory=dict)

  def of(self, greeted: Sequence[EngineOffer]) -> tuple[EngineOffer, ...]:
    """The engines of a greeting as they are now, in the order of choice."""
    if not self.speeds and not self.broken:
      return tuple(greeted)
    return in_order(
        replace(offer, speed=self.speeds.get(offer.name, offer.speed), missing=self._missing(offer))
        for offer in greeted
    )

  def _missing(self, offer: EngineOffer) -> str:
    why = self.broken.get(offer.name)
    return offer.missing if why is None else f"is broken: {why}"

  def settling(self, fingerprint: str, engine: str) -> EngineNews:
    """With the engine that a model is run with, and without the one of the model that has been remembered for longest."""
    settled = {of: name for of, name in self.settled.items() if of != fingerprint}
    return replace(self, settled=dict([*settled.items(), (fingerprint, engine)][-MAX_SETTLED:]))
