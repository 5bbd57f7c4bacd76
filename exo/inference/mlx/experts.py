"""Experts that a checkpoint has one by one, for models of mlx-lm that know them as they are stacked in the usual form of their family."""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx

_ONE = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


def stacked(weights: dict[str, Any]) -> dict[str, Any]:
  """`experts.gate_up_proj` (experts, 2 × width, hidden size), gates before the rest, and `experts.down_proj` in place of a tensor
  for each expert and projection. Weights that are stacked already stay as they are."""
  found: dict[tuple[str, str], dict[int, Any]] = {}
  others: dict[str, Any] = {}
  for name, array in weights.items():
    if (match := _ONE.fullmatch(name)) is None:
      others[name] = array
    else:
      found.setdefault((match[1], match[3]), {})[int(match[2])] = array
  stacks = {key: mx.stack([each[i] for i in sorted(each)]) for key, each in found.items()}
  for experts in {experts for experts, _ in stacks}:
    gate, up, down = (stacks[experts, part] for part in ("gate", "up", "down"))
    others[f"{experts}.gate_up_proj"] = mx.concatenate([gate, up], axis=-2)
    others[f"{experts}.down_proj"] = down
  return others
