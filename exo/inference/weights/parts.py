"""Which part of a model a tensor belongs to, by its name, and which of them a stage needs: to fetch, to plan for, to load.

Names are those of Hugging Face's classes or of mlx-lm's models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from exo.inference.shard import Shard
from exo.inference.weights.block_map import Span, merged

if TYPE_CHECKING:
  from exo.inference.weights.checkpoint import Checkpoint


class Part(Enum):
  EMBEDDING = "embedding"  # of the first stage, and of the last where there is no head of its own
  NORM = "norm"  # after the layers: of the last stage
  HEAD = "head"
  SHARED = "shared"  # of every stage
  UNUSED = "unused"  # towers for images and sound, layers that predict further tokens


_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.")
_UNUSED = re.compile(r"(?:^|\.)(?:(?:embed_)?(?:vision|visual|audio)|multi_modal|mm_|image_|mtp[._])")
# what architectures call the table of words (and that of positions, which is added to it), and what they call the head; a
# name that is not known here is taken for one of every stage
_EMBEDDINGS = frozenset({
    "embed_tokens", "tok_embeddings", "token_embeddings", "word_embeddings", "embeddings", "embedding", "embed_in",
    "embd", "wte", "wpe"
})
_HEADS = frozenset({"lm_head", "embed_out", "output", "ff_out"})
_NORMS = frozenset({"norm", "norm_f", "ln_f", "final_norm", "final_layernorm", "final_layer_norm"})


def part_of(name: str) -> int | Part:
  """The layer's number, or the part. `name` is that of a tensor or of one of its scales."""
  if _UNUSED.search(name):
    return Part.UNUSED
  if (match := _LAYER.search(name)) is not None:
    return int(match[1])
  pieces = frozenset(name.split("."))
  if pieces & _HEADS:
    return Part.HEAD
  if pieces & _EMBEDDINGS:
    return Part.EMBEDDING
  return Part.NORM if pieces & _NORMS else Part.SHARED


def parts_needed(shard: Shard, has_head: bool, tied: bool) -> frozenset[int | Part]:
  """The parts that a stage reads: its layers, what is of every stage, and its end's.

  Without a head of its own a model takes the embedding's rows for one. Where it has one though its configuration ties the two
  (`tied`), engines differ in which they take: the last stage has both.
  """
  needed: set[int | Part] = {*shard.layers, Part.SHARED}
  if shard.is_first or (shard.is_last and (tied or not has_head)):
    needed.add(Part.EMBEDDING)
  if shard.is_last:
    needed |= {Part.NORM, Part.HEAD}
  return frozenset(needed)


def needed_names(names: Iterable[str], shard: Shard, tied: bool = False) -> list[str]:
  """Of all tensors' names those that a stage reads, in their order."""
  parts = {name: part_of(name) for name in names}
  needed = parts_needed(shard, Part.HEAD in parts.values(), tied)
  return [name for name, part in parts.items() if part in needed]


def shard_tensors(checkpoint: Checkpoint, shard: Shard) -> list[str]:
  """The names of the tensors that a stage reads."""
  return needed_names(checkpoint.names(), shard, checkpoint.config.tied)


def file_spans(checkpoint: Checkpoint, names: Iterable[str]) -> dict[Path, list[Span]]:
  """Where these tensors lie: by file, in spans that do not touch."""
  spans: dict[Path, list[Span]] = {}
  for name in names:
    for path, start, end in checkpoint.spans(name):
      spans.setdefault(path, []).append((start, end))
  return {path: merged(found) for path, found in spans.items()}
