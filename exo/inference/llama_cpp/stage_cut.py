"""Layers a to b of a GGUF model as a model of its own, which llama.cpp computes as it computes the whole.

A stage's metadata say how many layers it has, its tensors are renumbered, and it has no vocabulary. What comes in are embeddings, and
what goes out is the result of its last layer, which is read where the graph makes it. Where llama.cpp wants a layer of some kind, at
some index, or some number of layers, layers of zeros stand in: attention and network give nothing, and what goes past them stays as
it was. Those before the last layer that is read are computed, those behind it never are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exo.errors import UnsupportedModelError
from exo.inference.families.catalogue import family_of, why_uncut
from exo.inference.families.family import Cut, Later, LayerKind
from exo.inference.shard import Shard

_FEW_WORDS = 32  # rows of the table of a stage without the head: it is never read
_NOT_BY_LAYER = ("rope.dimension_sections", "ple.", "target_layers")  # lists that do not have one value for each layer
_FROM_THE_START = ("leading_dense_block_count", "hash_layer_count")  # numbers of layers, counted from the first
# layers that predict further tokens, left out with their tensors; pictures' features, with which a row of input is wider
_LEFT_OUT = ("nextn_predict_layers", "n_deepstack_layers")
_OTHER_FILES = ("general.", "tokenizer.", "split.", "GGUF.")
_WINDOWS, _RECURRENT = "attention.sliding_window_pattern", "attention.recurrent_layers"


@dataclass(frozen=True, slots=True)
class Piece:
  """A tensor of a stage: the first `rows` (None: all) of the tensor `source` of the whole, or as many numbers `constant`."""
  source: str
  rows: int | None = None
  constant: float | None = None


@dataclass(frozen=True)
class StageCut:
  """`metadata` are those of the architecture, `tensors` by their names in the stage.

  `out` is the node whose value is the stage's result, "" for the last one, which has logits. `feed` is the node to be overwritten with
  the input, "" where that is given as embeddings. `scale` is what embeddings of tokens are multiplied by before they are given.
  `positions` are those of one token of input. `takes_tokens`: ids go in, and no embeddings.
  """
  metadata: dict[str, Any]
  tensors: dict[str, Piece] = field(default_factory=dict)
  out: str = ""
  feed: str = ""
  scale: float = 1.0
  positions: int = 1
  takes_tokens: bool = False


class _Whole:
  """The model that is cut. `own` are its architecture's metadata without the prefix."""
  def __init__(self, metadata: Mapping[str, Any], tensors: Iterable[str]) -> None:
    self.metadata, self.tensors = metadata, tuple(tensors)
    self.architecture = str(metadata["general.architecture"])
    prefix = f"{self.architecture}."
    self.own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    self.n_blocks = int(self.own["block_count"])
    self.n_layers = self.n_blocks - int(self.own.get("nextn_predict_layers", 0))
    self.leading = int(self.own.get("leading_dense_block_count", 0))
    family = family_of(self.architecture)
    self.cut = Cut() if family is None else family.cut

  def starts_at(self, layer: int) -> int:
    """The layer, or one before, that may be the first of a stage."""
    step = math.lcm(self.cut.starts_at, int(self.own.get(self.cut.starts_at_key) or 1))
    return layer - layer % step

  def has_window(self, layer: int) -> bool:
    pattern = self.own.get(_WINDOWS)
    if isinstance(pattern, list):
      return bool(pattern[layer])
    every = self.cut.windows
    period = pattern if isinstance(pattern, int) and pattern else every.period if every is not None else 0
    if not period:
      return True
    first = every is not None and every.first
    return layer % period != (0 if first else period - 1)

  def is_recurrent(self, layer: int) -> bool:
    listed = self.own.get(_RECURRENT)
    if isinstance(listed, list):
      return bool(listed[layer])
    assert self.cut.recurrent is not None
    return (layer + 1) % int(self.own.get("full_attention_interval", self.cut.recurrent.period)) != 0

  def kind(self, layer: int) -> LayerKind | None:
    """Of the kinds that llama.cpp must find in a model of this architecture; None where it asks for none."""
    heads = self.own.get("attention.head_count_kv")
    if LayerKind.WINDOW in self.cut.needs:
      return LayerKind.WINDOW if self.has_window(layer) else LayerKind.FULL
    if isinstance(self.own.get(_RECURRENT), list) or self.cut.recurrent is not None:
      return LayerKind.RECURRENT if self.is_recurrent(layer) else LayerKind.ATTENTION
    if not isinstance(heads, list):
      return None
    if heads[layer]:
      return LayerKind.ATTENTION
    networks = self.own.get("feed_forward_length")
    only_network = self.cut.only_networks and isinstance(networks, list) and networks[layer]
    return LayerKind.FEED_FORWARD if only_network else LayerKind.RECURRENT

  def lacks(self, layers: Iterable[int]) -> Iterator[LayerKind]:
    held = {self.kind(layer) for layer in layers}
    for kind in self.cut.needs:
      if kind not in held and (kind is not LayerKind.WINDOW or self.own.get("attention.sliding_window")):
        yield kind


@dataclass(frozen=True, slots=True)
class _Layers:
  """Which layer of the whole each of a stage's stands for; those from `first` to `last` are themselves, the others are zeros."""
  of: tuple[int, ...]
  first: int
  last: int

  def is_zero(self, index: int) -> bool:
    return not self.first <= index <= self.last


def cut_of(metadata: Mapping[str, Any], tensors: Iterable[str], shard: Shard, n_words: int) -> StageCut:
  """A shard of a GGUF model of `n_words` words with these metadata and tensors. Raises `UnsupportedModelError` where there is none.

  Of a model that cannot be cut, tokens go in instead of embeddings."""
  whole = _Whole(metadata, tensors)
  if shard.n_layers != whole.n_layers:
    raise UnsupportedModelError(f"{shard} is of a model of {shard.n_layers} layers, the file has {whole.n_layers}")
  is_part = shard.layer_count < whole.n_layers
  uncut = why_uncut(metadata)
  if is_part and uncut:
    raise UnsupportedModelError(uncut)
  if uncut:
    own = {key: value for key, value in metadata.items() if not key.startswith(_OTHER_FILES)}
    own[f"{whole.architecture}.vocab_size"] = n_words
    return StageCut(own, {name: Piece(name) for name in whole.tensors}, takes_tokens=True)
  layers = _layers(whole, shard) if is_part else _Layers(tuple(range(whole.n_layers)), 0, whole.n_layers - 1)
  later = Later() if shard.is_first else whole.cut.later
  return StageCut(
      _metadata(whole, shard, layers, later, n_words),
      _tensors(whole, shard, layers, later),
      out="" if shard.is_last else f"{whole.cut.out}-{layers.last}",
      feed=later.feed or whole.cut.feed,
      scale=math.sqrt(whole.own["embedding_length"]) if shard.is_first and whole.cut.takes_scaled else 1.0,
      positions=4 if "rope.dimension_sections" in whole.own else 1
  )


def _layers(whole: _Whole, shard: Shard) -> _Layers:
  start = whole.starts_at(shard.start_layer)
  own = list(range(start, shard.end_layer + 1))
  spare = _spare(whole, shard)
  more: list[int] = []
  for kind in whole.lacks(own):
    if any(whole.kind(layer) == kind for layer in more):
      continue
    if (whole.cut.starts_at > 1 or whole.cut.starts_at_key) and not shard.is_last:  # in its place
      end = shard.end_layer + 1
      more = list(range(end, next(i for i in range(end, whole.n_layers) if whole.kind(i) == kind) + 1))
    else:
      more += [layer for layer in spare if whole.kind(layer) == kind][:1]
  count = len(own) + len(more)
  wanted = max(count, whole.cut.least)
  if whole.own.get("attention.q_lora_rank") and wanted in whole.cut.not_so_many:
    wanted = max(whole.cut.not_so_many) + 1
  more += spare[:1] * (wanted - count)
  # the last layer of a last stage computes only the rows that logits are wanted of, so it stays the last
  before = len(more) if shard.is_last else 0
  of = (*more[:before], *own, *more[before:])
  first = before + shard.start_layer - start
  return _Layers(of, first, first + shard.layer_count - 1)


def _spare(whole: _Whole, shard: Shard) -> list[int]:
  """Layers that may stand in as zeros, the nearest first: only such as leave the number of leading dense layers what it is."""
  at = shard.start_layer if shard.is_last else shard.end_layer
  near = [*range(at - 1, -1, -1), *range(at + 1, whole.n_layers), at]
  if shard.is_last:
    return [i for i in near if i < whole.leading or shard.start_layer >= whole.leading]
  return [i for i in near if i >= whole.leading or shard.end_layer < whole.leading]


def _metadata(whole: _Whole, shard: Shard, layers: _Layers, later: Later, n_words: int) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for key, value in whole.metadata.items():
    short = key.removeprefix(f"{whole.architecture}.")
    if key.startswith(_OTHER_FILES) or short in _LEFT_OUT or short in later.drop:
      continue
    if isinstance(value,
                  list) and len(value) in (whole.n_layers, whole.n_blocks) and not short.startswith(_NOT_BY_LAYER):
      value = [value[layer] for layer in layers.of]
    elif short in _FROM_THE_START:
      value = sum(layer < value for layer in layers.of)
    found[key] = value

  def own(key: str) -> str:
    return f"{whole.architecture}.{key}"

  found[own("block_count")] = len(layers.of)
  found[own("vocab_size")] = n_words if shard.is_last else _FEW_WORDS
  said = [(u.key, u.value) for u in whole.cut.unsaid if whole.n_layers in u.layers and n_words == u.words]
  for key, number in (*whole.cut.fill, *said):
    found.setdefault(own(key), number)
  if whole.cut.windows is not None and whole.own.get("attention.sliding_window"
                                                     ) and not isinstance(found.get(own(_WINDOWS)), list):
    found[own(_WINDOWS)] = [whole.has_window(layer) for layer in layers.of]
  if whole.cut.recurrent is not None and own(_RECURRENT) not in found:
    found[own(_RECURRENT)] = [whole.is_recurrent(layer) for layer in layers.of]
  return found


def _tensors(whole: _Whole, shard: Shard, layers: _Layers, later: Later) -> dict[str, Piece]:
  found: dict[str, Piece] = {}
  by_layer: dict[int, list[str]] = {}
  for name in whole.tensors:
    if name.startswith("blk."):
      by_layer.setdefault(int(name.split(".")[1]), []).append(name)
  for index, layer in enumerate(layers.of):
    for name in by_layer.get(layer, ()):
      # what scales a layer's result stays 1 in a layer that changes nothing
      constant = None if not layers.is_zero(index) else 1.0 if "output_scale" in name else 0.0
      found[name.replace(f"blk.{layer}.", f"blk.{index}.", 1)] = Piece(name, constant=constant)
  for name in whole.tensors:
    elsewhere = name.startswith("blk.") or name in ("token_embd.weight", "output.weight", "output.bias")
    if not elsewhere and not _is_unused(whole, name, layers.of):
      found[name] = Piece(name, constant=0.0 if name in later.zero else None)
  return found | _ends(whole, shard)


def _is_unused(whole: _Whole, name: str, layers: Sequence[int]) -> bool:
  """Whether a tensor is refused, since no layer of the stage asks for it."""
  return name in whole.cut.unused_without_full and not any(whole.kind(layer) is LayerKind.FULL for layer in layers)


def _ends(whole: _Whole, shard: Shard) -> dict[str, Piece]:
  """The embedding and the head. The table of a stage is never read, since embeddings come in; the head may lie in its place."""
  rows = None if shard.is_last else _FEW_WORDS
  found = {"output.bias": Piece("output.bias", rows)} if "output.bias" in whole.tensors else {}
  head = "output.weight" if "output.weight" in whole.tensors else "token_embd.weight"
  if head == "output.weight" and whole.cut.own_head:
    return found | {head: Piece(head, rows), "token_embd.weight": Piece("token_embd.weight", rows, 0.0)}
  if shard.is_last:
    return found | {"token_embd.weight": Piece(head)}
  return found | {"token_embd.weight": Piece("token_embd.weight", rows, 0.0)}
