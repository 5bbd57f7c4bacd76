"""What a model is loaded for: how long a request may be there, and how many run at once."""

from __future__ import annotations

from dataclasses import dataclass

from exo.topology.model_size import MIN_KV_TOKENS


@dataclass(frozen=True, slots=True)
class LoadedFor:
  """`context` is the most tokens of one request and its answer, `parallel` how many of them run at once; None: what fits."""
  context: int | None = None
  parallel: int | None = None

  def kv_tokens(self, model_context: int | None) -> int:
    """Tokens of KV cache for which a plan must have room beside the weights, of a model that knows so long a text."""
    context = MIN_KV_TOKENS if self.context is None else min(self.context, model_context or self.context)
    return context * (self.parallel or 1)

  def max_kv_tokens(self, model_context: int | None) -> int | None:
    """How many its caches may hold at most; None where that is what there is room for."""
    return self.kv_tokens(model_context) if self.is_bounded else None

  @property
  def is_bounded(self) -> bool:
    """Whether its caches take no more than what was asked for."""
    return self.context is not None and self.parallel is not None

  def __str__(self) -> str:
    context = "" if self.context is None else f" of up to {self.context} tokens"
    if self.parallel is None:
      return f"requests{context}, as many as fit" if context else "as much as fits"
    return f"{self.parallel} request{'' if self.parallel == 1 else 's'} at once{context}"


WHAT_FITS = LoadedFor()
