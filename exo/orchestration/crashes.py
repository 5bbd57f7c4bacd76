"""Models that end the process of a worker's engine: too often in a short time, and they are left alone for a while."""

from __future__ import annotations

import time
from collections.abc import Callable

from exo.errors import EngineEndedError, ModelAsideError
from exo.oldest import forget_oldest

_MOST, _WITHIN_S, _ASIDE_S = 3, 60.0, 60.0
_MAX_MODELS = 64


class Crashes:
  """Of the worker that people call `label`, by the fingerprint of models' files."""
  def __init__(self, label: str, clock: Callable[[], float] = time.monotonic) -> None:
    self._label, self._clock = label, clock
    self._times: dict[str, list[float]] = {}
    self._aside: dict[str, tuple[str, float]] = {}  # (why, until)

  def note(self, model_id: str, fingerprint: str, error: EngineEndedError) -> ModelAsideError | None:
    """Count the end of a process; the error that the model is put aside with, where that was one too many. One that was only found
    ended is not the model's doing."""
    if not error.details.get("computing"):
      return None
    now = self._clock()
    times = self._times[fingerprint] = [t for t in self._times.pop(fingerprint, ()) if now - t < _WITHIN_S] + [now]
    forget_oldest(self._times, _MAX_MODELS)
    if len(times) < _MOST:
      return None
    del self._times[fingerprint]
    why = f"{model_id} ended its engine on {self._label} {_MOST} times within a minute ({error.message})"
    self._aside[fingerprint] = why, now + _ASIDE_S
    forget_oldest(self._aside, _MAX_MODELS)
    return self.why_aside(fingerprint)

  def why_aside(self, fingerprint: str) -> ModelAsideError | None:
    """The error of a model that is not tried now, None for others."""
    why, until = self._aside.get(fingerprint, ("", 0.0))
    if (left_s := until - self._clock()) <= 0:
      self._aside.pop(fingerprint, None)
      return None
    return ModelAsideError(f"{why}: it is tried again in {left_s:.0f} s", retry_after_s=round(left_s, 1))
