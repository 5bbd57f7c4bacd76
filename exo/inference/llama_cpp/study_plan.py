"""Which layers of a stage stand for all of it when it is studied, and under which name the result is kept."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from exo.inference.shard import Shard
from exo.inference.weights.gguf_header import GgufHeader, GgufTensor
from exo.machine import processor_mark

_VERSION = 1  # of what is looked at
_COUNTED = ("block_count", "context_length", "vocab_size")  # numbers of an architecture that change no call
_Kind = tuple[tuple[str, str, tuple[int, ...]], ...]  # of a layer: its tensors' names, encodings and shapes


def parts_to_study(tensors: Mapping[str, GgufTensor], shard: Shard) -> list[Shard]:
  """The fewest layers in a row that have every kind of layer of the shard, and the last one with the head, where that is in it."""
  kinds = [layer_kind(tensors, layer) for layer in range(shard.start_layer, shard.end_layer + 1)]
  n_kinds, held = len(set(kinds)), Counter[_Kind]()
  best, a = (0, len(kinds)), 0
  for b, kind in enumerate(kinds):
    held[kind] += 1
    while len(held) == n_kinds:
      if b + 1 - a < best[1] - best[0]:
        best = (a, b + 1)
      held[kinds[a]] -= 1
      held += Counter()  # without those that are not there any more
      a += 1
  first, end = shard.start_layer + best[0], shard.start_layer + best[1]
  parts = [Shard(shard.model_id, first, end - 1, shard.n_layers)]
  if shard.is_last and end != shard.n_layers:
    parts.append(Shard(shard.model_id, shard.n_layers - 1, shard.n_layers - 1, shard.n_layers))
  return parts


def layer_kind(tensors: Mapping[str, GgufTensor], layer: int) -> _Kind:
  prefix = f"blk.{layer}."
  return tuple(
      sorted((name.removeprefix(prefix), info.encoding, info.shape) for name, info in tensors.items()
             if name.startswith(prefix))
  )


def study_key(header: GgufHeader, shard: Shard, how: tuple[object, ...], library: Path) -> str:
  """The same for all stages of an architecture and its numbers that have the same kinds of matrices, are computed in the same way (`how`),
  with the same library, on the same processor."""
  tensors, prefix = header.tensors, f"{header.metadata['general.architecture']}."
  own = {key: value for key, value in header.metadata.items() if key.startswith(prefix) and not isinstance(value, list)}
  own |= dict.fromkeys(prefix + counted for counted in _COUNTED)
  of = {layer_kind(tensors, layer) for layer in range(shard.start_layer, shard.end_layer + 1)}
  head = [(info.encoding, info.shape) for name, info in tensors.items() if shard.is_last and name.startswith("output")]
  if shard.is_last and "output.weight" not in tensors:
    head.append((tensors["token_embd.weight"].encoding, tensors["token_embd.weight"].shape))
  stat = library.stat()
  said = repr((
      _VERSION, prefix, sorted(own.items()), sorted(of), sorted(head), how, library.name, stat.st_size,
      stat.st_mtime_ns, processor_mark()
  ))
  return hashlib.sha256(said.encode()).hexdigest()[:32]
