"""Which pages of the KV cache belong to which sequence. Only bookkeeping: the pages themselves are the decoder's."""

from __future__ import annotations

from dataclasses import dataclass, field

from exo.errors import OutOfMemoryError
from exo.inference.tinygrad.kernels import PAGE
from exo.inference.whole_blocks import blocks_for


@dataclass(slots=True)
class Held:
  """A sequence: its place in the page table, its pages in order, its tokens.

  Of the pages, `dirty` are yet to be cleared, and those from `entered` on yet to be written to the table.
  """
  place: int
  pages: list[int] = field(default_factory=list)
  length: int = 0
  dirty: list[int] = field(default_factory=list)
  entered: int = 0


class KvPages:
  """`pages` pages for at most `places` sequences. Pages freed last are taken first: they are the ones in memory.

  `clean` says that pages never used are zeros.
  """
  def __init__(self, pages: int, places: int, clean: bool = True) -> None:
    self.total = pages
    self._clean = clean
    self._free: list[int] = []
    self._untouched = 0  # pages from here on were never used
    self._places = list(range(places - 1, -1, -1))
    self._held: dict[int, Held] = {}
    self.max_sequences = places

  def length(self, sequence: int) -> int:
    held = self._held.get(sequence)
    return held.length if held else 0

  def has(self, sequence: int) -> bool:
    return sequence in self._held

  def held(self, sequence: int) -> Held:
    return self._held[sequence]

  def extend(self, sequence: int, length: int) -> Held:
    """Give the sequence, new or not, pages for `length` tokens.

    Raises `OutOfMemoryError` when too few are left; nothing is changed then.
    """
    held = self._held.get(sequence)
    lacking = blocks_for(length, PAGE) - (0 if held is None else len(held.pages))
    if held is None and not self._places:
      raise OutOfMemoryError(f"all {self.max_sequences} places of the KV cache are taken")
    if lacking > len(self._free) + self.total - self._untouched:
      raise OutOfMemoryError(f"all {self.total * PAGE} tokens of the KV cache are taken")
    if held is None:
      held = self._held[sequence] = Held(self._places.pop())
    for _ in range(lacking):
      if self._free:
        page, clean = self._free.pop(), False
      else:
        page, clean = self._untouched, self._clean
        self._untouched += 1
      held.pages.append(page)
      if not clean:
        held.dirty.append(page)
    return held

  def truncate(self, sequence: int, length: int) -> None:
    """Also what was taken for tokens that never came is given back."""
    held = self._held.get(sequence)
    if held is None:
      return
    held.length = min(held.length, length)
    keep = blocks_for(held.length, PAGE)
    if keep < len(held.pages):
      given = held.pages[keep:]
      self._free.extend(given)
      del held.pages[keep:]
      held.dirty = [page for page in held.dirty if page not in given]
      held.entered = min(held.entered, keep)

  def drop(self, sequence: int) -> None:
    held = self._held.pop(sequence, None)
    if held is not None:
      self._free.extend(held.pages)
      self._places.append(held.place)
