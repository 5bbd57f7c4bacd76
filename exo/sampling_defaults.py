"""What tokens are drawn with where a request says nothing of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

# what a request may say, too (`api/schema.py`)
BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "repetition_penalty": (0.01, 10),
}


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
  """Values are as in `SamplingParams`, `top_k` -1 is off, too; None where nothing is said, so that somebody else may say it."""
  temperature: float | None = None
  top_p: float | None = None
  top_k: int | None = None
  min_p: float | None = None
  frequency_penalty: float | None = None
  presence_penalty: float | None = None
  repetition_penalty: float | None = None

  @property
  def said(self) -> dict[str, Any]:
    """By name, without those that nothing is said of."""
    return {name: value for name, value in asdict(self).items() if value is not None}

  @property
  def is_possible(self) -> bool:
    """Of what somebody else has written."""
    return all(is_possible(name, value) for name, value in self.said.items())

  def over(self, others: SamplingDefaults) -> SamplingDefaults:
    """These, field by field, and the others' where nothing is said here."""
    return replace(others, **self.said)

  def at(self, temperature: float | None) -> SamplingDefaults:
    """With the temperature of somebody who counts for more, None where he says nothing. At 0 there is nothing to draw, and who wants that
    wants the likeliest tokens as they are: then no other default counts.
    """
    if temperature is None:
      return self
    return SamplingDefaults(temperature=0.0) if temperature == 0 else replace(self, temperature=temperature)


SILENT = SamplingDefaults()


def is_possible(name: str, value: float) -> bool:
  """Whether a field may have this value; no bounds hold what is not a number."""
  low, high = BOUNDS[name]
  return low <= value <= high
