"""How a model's makers want it to be sampled where a request does not say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
  """None where they say nothing."""
  temperature: float | None = None
  top_p: float | None = None
  top_k: int | None = None
  min_p: float | None = None
  repetition_penalty: float | None = None
