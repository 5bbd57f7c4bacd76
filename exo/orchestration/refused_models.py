"""Models whose numbers were bad on one node after the other: not the nodes are at fault."""

from __future__ import annotations

import time

from exo.log import say
from exo.oldest import forget_oldest

_REQUESTS = 2
_REFUSE_S = 600.0
_MAX_MODELS = 64


class RefusedModels:
  """By the fingerprint of their files, so that a model that is mended on disk is another one."""
  def __init__(self) -> None:
    self._strikes: dict[str, set[str]] = {}
    self._refused: dict[str, tuple[str, str, float]] = {}  # (model id, reason, until)

  def strike(self, model_id: str, fingerprint: str, request_id: str, nodes: list[str]) -> None:
    """A request's numbers were bad on all of `nodes`, which are two at least."""
    strikes = self._strikes.setdefault(fingerprint, set())
    strikes.add(request_id)
    if len(strikes) >= _REQUESTS:
      reason = (
          f"{model_id} gives numbers that are not finite, whichever node computes it ({', '.join(sorted(nodes))}): its files "
          "are damaged, or the engine gets it wrong. Fetch it anew, or run another one."
      )
      self._refused[fingerprint] = (model_id, reason, time.monotonic() + _REFUSE_S)
      del self._strikes[fingerprint]
      say(f"refused for {_REFUSE_S / 60:.0f} minutes: {reason}")
    forget_oldest(self._strikes, _MAX_MODELS)
    forget_oldest(self._refused, _MAX_MODELS)

  def reason(self, fingerprint: str) -> str | None:
    """Why a model is refused, None where it is not."""
    found = self._refused.get(fingerprint)
    if found is not None and time.monotonic() > found[2]:
      del self._refused[fingerprint]
      return None
    return None if found is None else found[1]

  def told(self) -> dict[str, str]:
    """By model id, for every screen."""
    return {found[0]: found[1] for f, found in list(self._refused.items()) if self.reason(f) is not None}
