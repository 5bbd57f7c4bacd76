"""Some layers of any model of mlx-lm, without a file for each architecture.

MLX computes only what is asked for. So the whole model is called, with other layers passing through what they get: the
layer before the stage gives the hidden state that was received, the last of the stage keeps what it gives, and nobody
asks for the embedding, norm or head that the stage does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from exo.errors import UnsupportedModelError
from exo.inference.families.family import MlxLm
from exo.inference.mlx.cache import KvCache
from exo.inference.mlx.library import cache_module
from exo.inference.shard import Shard


class SlicedModel:
  """The layers `shard.layers` of `model`, which is changed for good.

  `windows` gives, by layer, sliding windows that the model itself does not know of.
  """
  def __init__(self, model: Any, shard: Shard, windows: Sequence[int | None], facts: MlxLm) -> None:
    self._model, self._shard, self._windows, self._gives_more = model, shard, windows, facts.gives_more
    self._layers = list(model.layers)
    self._prototypes = prototypes = cache_module().make_prompt_cache(model)
    whole = shard.is_first and shard.is_last
    if len(self._layers) != shard.n_layers:
      raise UnsupportedModelError(
          f"mlx-lm makes {len(self._layers)} layers of it, its configuration says {shard.n_layers}",
          layers=shard.n_layers
      )
    self._own = list(range(len(prototypes))) if whole else self._caches_of(shard)
    # a model takes its masks from the caches of certain layers: where those lie outside, one of the same kind stands in
    kinds = [(type(prototype), getattr(prototype, "max_size", None)) for prototype in prototypes]
    place = {i: k for k, i in enumerate(self._own)}
    self._source = [
        place.get(i, next((place[k] for k in self._own if kinds[k] == kinds[i]), None)) for i in range(len(prototypes))
    ]
    self._hidden: Any = None
    self._rows: Any = None
    self._put_hooks(facts.grouped_heads)

  def _caches_of(self, shard: Shard) -> list[int]:
    """Which of the model's caches the stage's layers use: not every layer of every model keeps something."""
    if len(self._prototypes) == shard.n_layers:
      return list(shard.layers)
    found, at = {id(cache): i for i, cache in enumerate(self._prototypes)}, 0
    used: list[int] = []

    def note(cls: Any, own: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
      nonlocal at
      if at in shard.layers:
        used.extend(found[id(value)] for value in (*args, *kwargs.values()) if id(value) in found)
      at += 1
      return self._passed(x)

    classes = [type(layer) for layer in self._layers]
    for layer in self._layers:
      _hook(layer, note)
    self._model(cache_module().mx.array([[0]]), cache=self._prototypes)  # nothing is computed
    for layer, kind in zip(self._layers, classes, strict=True):
      layer.__class__ = kind
    return sorted(set(used))

  def _passed(self, hidden: Any) -> Any:
    """What a layer gives that changes nothing."""
    return (hidden, (None, None), None) if self._gives_more else hidden

  def _has_kv(self, layer: int) -> bool:
    prototype, base = self._prototypes[layer], cache_module()
    return type(prototype) is base.KVCache or (type(prototype) is base.RotatingKVCache and prototype.keep == 0)

  @property
  def is_plain(self) -> bool:
    """Whether all caches are keys and values that can be shortened, copied and put side by side."""
    return all(self._has_kv(i) for i in self._own)

  def make_caches(self) -> list[Any]:
    """Empty caches of the stage's layers; those that hold more than keys and values are the model's own."""
    fresh = self._prototypes if self.is_plain else cache_module().make_prompt_cache(self._model)
    return [
        KvCache(self._windows[i] or getattr(self._prototypes[i], "max_size", None)) if self._has_kv(i) else fresh[i]
        for i in self._own
    ]

  def __call__(self, token_ids: Any, caches: Sequence[Any], hidden: Any, rows: Any) -> Any:
    """Hidden states (batch, tokens, hidden size), or logits of the last stage, of the tokens `rows` if given.

    `token_ids` (batch, tokens) int32; `hidden` what the stage before gave. Nothing is computed yet.
    """
    out, kept = self._call(token_ids, caches, hidden, rows)
    return out if self._shard.is_last else kept

  def last_hidden(self, token_ids: Any, caches: Sequence[Any], hidden: Any) -> Any:
    """As a call, but of any stage what its last layer gives; norm and head are never computed."""
    return self._call(token_ids, caches, hidden, None)[1]

  def _call(self, token_ids: Any, caches: Sequence[Any], hidden: Any, rows: Any) -> tuple[Any, Any]:
    """(what the model gives, what the stage's last layer gave)."""
    self._hidden, self._rows = hidden, rows
    try:
      out = self._model(
          token_ids, cache=[self._prototypes[i] if k is None else caches[k] for i, k in enumerate(self._source)]
      )
      return out, self._hidden
    finally:
      self._hidden = self._rows = None

  def _put_hooks(self, array_masks: bool) -> None:
    first, last = self._shard.start_layer, self._shard.end_layer
    for i, layer in enumerate(self._layers):
      if i == first - 1:
        _hook(layer, lambda cls, own, x, *args, **kwargs: self._passed(self._hidden))
      elif not first <= i <= last:
        _hook(layer, lambda cls, own, x, *args, **kwargs: self._passed(x))
      elif any(self._windows):
        _hook(layer, _with_own_mask(array_masks))
    if self._shard.is_last:
      _hook(self._layers[last], self._choose_rows)
    else:
      _hook(self._layers[last], self._keep)

  def _keep(self, cls: Any, own: Any, *args: Any, **kwargs: Any) -> Any:
    out = cls.__call__(own, *args, **kwargs)
    self._hidden = out[0] if self._gives_more else out
    return out

  def _choose_rows(self, cls: Any, own: Any, *args: Any, **kwargs: Any) -> Any:
    """Norm and head see only the tokens whose logits are wanted."""
    out = self._keep(cls, own, *args, **kwargs)
    if self._rows is None:
      return out
    chosen = self._hidden[:, self._rows]
    return (chosen, *out[1:]) if self._gives_more else chosen


def _with_own_mask(array_masks: bool) -> Callable[..., Any]:
  def call(cls: Any, own: Any, x: Any, mask: Any = None, cache: Any = None) -> Any:
    return cls.__call__(own, x, cache.make_mask(x.shape[1], return_array=array_masks), cache)

  return call


def _hook(layer: Any, call: Callable[..., Any]) -> None:
  """Let `call(class, layer, …)` stand in for the layer's own call. Attributes stay, since models look at them."""
  cls = type(layer)
  layer.__class__ = type(cls.__name__, (cls, ), {"__call__": lambda own, *a, **k: call(cls, own, *a, **k)})
