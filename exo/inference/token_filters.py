"""What leaves tokens out of the draw: by how typical they are, by chance (XTC), and by their surprise (Mirostat)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Probabilities = npt.NDArray[np.float64]  # of the candidates (N,), likeliest first, their sum 1
Kept = npt.NDArray[np.bool_]  # which of the candidates stay (N,)

_ZIPF_TOKENS = 100  # from which Mirostat 1 tells the distribution's exponent


def typical(probabilities: Probabilities, mass: float) -> Kept:
  """The tokens whose surprise is nearest to the entropy, until they have `mass` (Meister et al., 2022)."""
  surprise = -np.log(np.maximum(probabilities, 1e-300))
  order = np.argsort(np.abs(surprise - float((probabilities * surprise).sum())), kind="stable")
  enough = int(np.searchsorted(probabilities[order].cumsum(), mass)) + 1
  kept = np.zeros(probabilities.size, bool)
  kept[order[:enough]] = True
  return kept


def without_top_choices(probabilities: Probabilities, threshold: float) -> Kept:
  """Of the tokens with at least `threshold`, only the least likely: XTC, exclude top choices."""
  above = int((probabilities >= threshold).sum())
  kept = np.ones(probabilities.size, bool)
  kept[:max(0, above - 1)] = False
  return kept


class Mirostat:
  """Keeps the surprise of what is drawn near `tau` bits (Basu et al., 2021); `mu` is its state, the surprise allowed next.

  Version 1 takes the most likely k by Zipf's law, version 2 all tokens whose surprise is at most `mu`.
  """
  def __init__(self, version: int, tau: float, eta: float, mu: float = 0.0) -> None:
    self._version, self._tau, self._eta = version, tau, eta
    self.mu = mu or 2 * tau

  def keeps(self, probabilities: Probabilities, vocab_size: int) -> int:
    """How many of the likeliest candidates stay, at least one."""
    by_law = None if self._version == 2 else self._zipf(probabilities, vocab_size)
    if by_law is None:
      by_law = int((-np.log2(np.maximum(probabilities, 1e-300)) <= self.mu).sum())
    return max(1, min(probabilities.size, by_law))

  def _zipf(self, probabilities: Probabilities, vocab_size: int) -> int | None:
    """None where the candidates do not follow the law."""
    head = probabilities[:_ZIPF_TOKENS]
    head = head[head > 0]
    if head.size < 2:
      return None
    ranks = np.arange(1, head.size)
    steps = np.log((ranks + 1) / ranks)
    exponent = float((steps * np.log(head[:-1] / head[1:])).sum() / (steps * steps).sum())
    epsilon = exponent - 1
    if abs(epsilon) < 1e-6:
      epsilon = 1e-6
    try:
      k = (epsilon * 2**self.mu / (1 - float(vocab_size)**-epsilon))**(1 / exponent)
    except (OverflowError, ZeroDivisionError):
      return None
    return round(min(k, probabilities.size)) if isinstance(k, float) and not math.isnan(k) else None

  def drew(self, probability: float) -> None:
    """A token was drawn that had this probability among those that stayed."""
    self.mu -= self._eta * (-math.log2(max(probability, 1e-300)) - self._tau)
