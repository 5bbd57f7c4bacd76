"""Rotary position embedding: the angles of each position, by the scaling that a model's configuration asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exo.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class RopeScaling:
  """One kind of layer's rotary embedding. `factors` (one per pair of dimensions) divide the base frequencies. `truncate`: the bounds of
  "yarn" are whole dimensions.
  """
  theta: float = 10000.0
  kind: str = "default"
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_position: int = 8192
  factors: tuple[float, ...] = ()
  long_factors: tuple[float, ...] = ()
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None
  truncate: bool = True

  @property
  def has_two_reaches(self) -> bool:
    """Whether sequences within the original context are turned otherwise than longer ones."""
    return self.kind in ("longrope", "su") and bool(self.long_factors) and self.long_factors != self.factors


def inverse_frequencies(rope: RopeScaling, rotary_dim: int, far: bool) -> npt.NDArray[np.float64]:
  """Radians per position of each pair of dimensions, shape (rotary_dim / 2,), of sequences that stay within the original context,
  or, `far`, of longer ones.

  Formulas: RoFormer (Su et al., 2021); "linear" position interpolation (Chen et al., 2023); "llama3" as in Meta's
  llama-models; "yarn" (Peng et al., 2023); "longrope" (Ding et al., 2024). Raises `UnsupportedModelError` for others.
  """
  exponents: npt.NDArray[np.float64] = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
  base: npt.NDArray[np.float64] = np.asarray(rope.theta**-exponents)
  match rope.kind:
    case "default" | "mrope":
      return base / np.asarray(rope.factors) if rope.factors else base
    case "linear":
      return base / rope.factor
    case "llama3":
      wavelength = 2 * math.pi / base
      low, high = rope.original_max_position / rope.low_freq_factor, rope.original_max_position / rope.high_freq_factor
      smooth = (rope.original_max_position / wavelength -
                rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
      between = (1 - smooth) * base / rope.factor + smooth * base
      middle: npt.NDArray[np.float64] = np.where(wavelength < high, base, between)
      return np.asarray(np.where(wavelength > low, base / rope.factor, middle))
    case "yarn":

      def dimension(rotations: float) -> float:
        return rotary_dim * math.log(rope.original_max_position /
                                     (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

      low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
      if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
      low_dim, high_dim = max(low, 0), min(high, rotary_dim - 1)
      ramp = np.clip((np.arange(rotary_dim // 2) - low_dim) / max(high_dim - low_dim, 0.001), 0, 1)
      return np.asarray(base / rope.factor * ramp + base * (1 - ramp))
    case "longrope" | "su":
      return np.asarray(base / np.asarray(rope.long_factors if far and rope.long_factors else rope.factors or (1.0, )))
    case _:
      raise UnsupportedModelError(f"rotary embedding of kind {rope.kind!r} is not known")


def attention_factor(rope: RopeScaling, max_position: int) -> float:
  """What cosines and sines are multiplied with (yarn and longrope; 1 for the others)."""
  if rope.attention_factor is not None:
    return rope.attention_factor
  if rope.kind == "yarn" and rope.factor > 1:
    return 0.1 * math.log(rope.factor) + 1.0
  if rope.kind in ("longrope", "su") and max_position > rope.original_max_position:
    return math.sqrt(1 + math.log(max_position / rope.original_max_position) / math.log(rope.original_max_position))
  return 1.0


def cos_sin(rope: RopeScaling, rotary_dim: int, length: int, max_position: int,
            far: bool) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
  """Cosines and sines of positions 0..length-1, each of shape (length, rotary_dim / 2)."""
  angles = np.outer(np.arange(length, dtype=np.float64), inverse_frequencies(rope, rotary_dim, far))
  scale = attention_factor(rope, max_position)
  return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)
