"""Which part of a model a tensor belongs to, by its Hugging Face name, and what a shard needs of a checkpoint."""

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
  UNUSED = "unused"  # towers for images and sound


_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_UNUSED = re.compile(r"(?:^|\.)(?:vision|visual|audio|multi_modal|mm_|image_)")


def part_of(name: str) -> int | Part:
  """The layer's number, or the part. `name` is that of a tensor or of one of its scales."""
  if _UNUSED.search(name):
    return Part.UNUSED
  if (match := _LAYER.search(name)) is not None:
    return int(match[1])
  pieces = name.split(".")
  if "embed_tokens" in pieces:
    return Part.EMBEDDING
  if "lm_head" in pieces:
    return Part.HEAD
  return Part.NORM if "norm" in pieces else Part.SHARED


def shard_tensors(checkpoint: Checkpoint, shard: Shard) -> list[str]:
  """The names of the tensors that a stage reads."""
  names = list(checkpoint.names())
  tied = not any(part_of(name) is Part.HEAD for name in names)
  wanted: set[int | Part] = {*shard.layers, Part.SHARED}
  if shard.is_first:
    wanted.add(Part.EMBEDDING)
  if shard.is_last:
    wanted |= {Part.NORM, Part.EMBEDDING if tied else Part.HEAD}
  return [name for name in names if part_of(name) in wanted]


def file_spans(checkpoint: Checkpoint, names: Iterable[str]) -> dict[Path, list[Span]]:
  """Where these tensors lie: by file, in spans that do not touch."""
  spans: dict[Path, list[Span]] = {}
  for name in names:
    for path, start, end in checkpoint.spans(name):
      spans.setdefault(path, []).append((start, end))
  return {path: merged(found) for path, found in spans.items()}
