"""What is known to be computed otherwise than by a model's authors: which of it concerns a model, from which position on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from exo.inference.families.catalogue import families, family_of, family_of_type
from exo.inference.families.family import Deviation


@dataclass(frozen=True, slots=True)
class FoundDeviation:
  """`name` is that of a `Deviation`, which begins to count at position `since`."""
  name: str
  since: int

  @property
  def known(self) -> Deviation | None:
    """None for a name that only another version of exo has."""
    return _by_name().get(self.name)

  def __str__(self) -> str:
    known = self.known
    if known is None:
      return self.name
    return f"{known.engine}: {known.what}" + (f" (from position {self.since} on)" if self.since else "")

  def is_of(self, engine: str) -> bool:
    known = self.known
    return known is not None and known.engine == engine


@cache
def _by_name() -> dict[str, Deviation]:
  return {deviation.name: deviation for family in families() for deviation in family.deviations}


def deviations_of(kind: str, is_gguf: bool, value: Callable[[str], Any]) -> tuple[FoundDeviation, ...]:
  """Of a model of this type (for GGUF: architecture) whose `value` of a key is None where it has none."""
  family = family_of(kind) if is_gguf else family_of_type(kind)
  if family is None:
    return ()
  found = []
  for deviation in family.deviations:
    if all(value(key) == wanted for key, wanted in deviation.where):
      told = (value(key) for key in deviation.since_keys)
      since = next((n for n in told if isinstance(n, int) and not isinstance(n, bool) and n > 0), deviation.since)
      found.append(FoundDeviation(deviation.name, since))
  return tuple(found)
