"""How many sequences may share a call without any of them being computed otherwise than alone: found out on the steps themselves.

llama.cpp computes one row, a few and many by kernels whose sums run in other orders, by the encoding of the weights and the processor: 3 rows
of repacked K-quants equal 1, a fourth does not, and for Q8_0 there is no bound. A width is tried on rows that somebody wants: together
first, then each alone, which is what counts and stays in the caches. Two equal results admit it, one that is not ends the search.
"""

from __future__ import annotations

from collections import Counter

_MOST = 64
_AGREEMENTS = 2


class SharedCalls:
  """`widest` is the number of rows that were seen to be as alone, all smaller ones, too."""
  def __init__(self, may_share: bool) -> None:
    """`may_share`: False where it is known that a lone row is computed by several threads, or what was tried could not be taken back."""
    self.widest, self._most = 1, _MOST if may_share else 1
    self._agreed: Counter[int] = Counter()

  def to_try(self, n_rows: int) -> int:
    """The width to try on so many rows that could share a call; 0 for none."""
    wanted = self.widest + 1
    return wanted if wanted <= min(n_rows, self._most) else 0

  def tried(self, width: int, is_equal: bool) -> None:
    if not is_equal:
      self._most = width - 1
      return
    self._agreed[width] += 1
    if self._agreed[width] >= _AGREEMENTS:
      self.widest = width
