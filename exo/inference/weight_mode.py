"""How an engine that can choose holds weights: what `--weights` says."""

from __future__ import annotations

from enum import StrEnum


class WeightMode(StrEnum):
  """`PRIVATE` are read, and laid out anew where this processor computes faster with that; `MAPPED` are as they are in the file, and
  processes share them."""
  PRIVATE = "private"
  MAPPED = "mapped"
