"""A first run of a few tokens, to find out what an architecture can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from exo.errors import EngineError, UnsupportedModelError
from exo.inference.families.catalogue import mlx_facts
from exo.inference.mlx.arguments import ignored_windows
from exo.inference.mlx.cache import DecodeBatch, KvCache
from exo.inference.mlx.sliced_model import SlicedModel
from exo.inference.model_config import ModelConfig
from exo.inference.shard import Shard

_LENGTHS = (2, 3, 5)
_MAX_ERROR = 0.05


@dataclass(frozen=True, slots=True)
class Abilities:
  """Whether the head can be computed for chosen tokens alone, and whether sequences of unequal lengths can be decoded as one
  batch.
  """
  chooses_rows: bool
  batches: bool


def mask_axes(config: ModelConfig) -> int:
  return 5 if mlx_facts(config.model_type).grouped_heads else 4


def rehearse(model: Any, shard: Shard, config: ModelConfig, dtype: Any) -> tuple[SlicedModel, Abilities]:
  """The stage's layers of `model`, whose hidden states are of `dtype`, and what they can do.

  Raises `UnsupportedModelError` where the model cannot be cut: it has no hidden state that could be handed on, or the stage
  depends on something that it does not have (which is NaN). Raises `EngineError` where the whole cannot be computed.
  """
  try:
    facts = mlx_facts(config.model_type)
    sliced = SlicedModel(model, shard, ignored_windows(config), facts)
    return sliced, _Rehearsal(sliced, shard, config, dtype).play()
  except UnsupportedModelError as error:
    raise _cannot_cut(config, error.message) from error
  except Exception as error:
    if shard.is_first and shard.is_last:
      raise EngineError(f"mlx: {type(error).__name__}: {error}") from error
    raise _cannot_cut(config, f"{type(error).__name__}: {error}") from error


def _cannot_cut(config: ModelConfig, why: str) -> UnsupportedModelError:
  return UnsupportedModelError(
      f"the mlx engine cannot cut models of type {config.model_type!r} into stages ({why}): "
      "run it on one node, or on another engine"
  )


class _Rehearsal:
  def __init__(self, model: SlicedModel, shard: Shard, config: ModelConfig, dtype: Any) -> None:
    self._model, self._shard, self._config, self._dtype = model, shard, config, dtype

  def play(self) -> Abilities:
    """Raises `UnsupportedModelError` with the reason alone."""
    caches = [self._model.make_caches() for _ in _LENGTHS]
    prompts = [self._run([own], n, None) for own, n in zip(caches, _LENGTHS, strict=True)]
    mx.eval(prompts)
    chooses_rows, is_last = True, self._shard.is_last
    if is_last:
      chooses_rows = self._chooses_rows()
    elif any(prompt.shape != (1, n, self._config.hidden_size) for prompt, n in zip(prompts, _LENGTHS, strict=True)):
      raise UnsupportedModelError(f"its hidden state has the shape {prompts[0].shape}")
    if not (self._shard.is_first and is_last) and any(mx.isnan(prompt).any().item() for prompt in prompts):
      raise UnsupportedModelError("a stage needs what only other stages have")
    return Abilities(chooses_rows, self._model.is_plain and self._batches_agree(caches))

  def _run(self, caches: Sequence[Any], n: int, rows: Any) -> Any:
    """`n` made-up tokens for each sequence: one by itself with its caches, or the rows of a batch's."""
    batch = 1 if len(caches) == 1 else len(_LENGTHS)
    ids = mx.arange(batch * n).reshape(batch, n) % self._config.vocab_size
    hidden = None
    if not self._shard.is_first:
      hidden = mx.random.normal((batch, n, self._config.hidden_size), key=mx.random.key(n)).astype(self._dtype)
    return self._model(ids, caches[0] if len(caches) == 1 else caches, hidden, rows)

  def _chooses_rows(self) -> bool:
    every = self._run([self._model.make_caches()], 4, None)
    try:
      last = self._run([self._model.make_caches()], 4, mx.array([3]))
      return last.shape == (1, 1, every.shape[-1]) and _near(last, every[:, 3:])
    except Exception:  # noqa: BLE001 - whatever it is, this model wants all its tokens
      return False

  def _batches_agree(self, caches: list[list[KvCache]]) -> bool:
    """Whether one more token each gives together what it gives alone."""
    ids = mx.arange(len(caches)).reshape(-1, 1)
    hidden = None
    if not self._shard.is_first:
      shape = (len(caches), 1, self._config.hidden_size)
      hidden = mx.random.normal(shape, key=mx.random.key(7)).astype(self._dtype)
    alone = [
        self._model(
            ids[i:i + 1], [layer.copied(layer.offset)
                           for layer in own], None if hidden is None else hidden[i:i + 1], None
        ) for i, own in enumerate(caches)
    ]
    try:
      batch = DecodeBatch(range(len(caches)), caches, mask_axes(self._config))
      together = self._model(ids, batch.layers, hidden, None)
      return bool(together.shape[0] == len(caches)) and _near(together, mx.concatenate(alone))
    except Exception:  # noqa: BLE001 - whatever it is, this model runs its sequences one by one
      return False


def _near(a: Any, b: Any) -> bool:
  """Equal but for rounding, which other shapes do otherwise."""
  a, b = a.astype(mx.float32), b.astype(mx.float32)
  return bool((mx.linalg.norm(a - b) <= _MAX_ERROR * mx.linalg.norm(b)).item())
