"""Which pages of the KV cache belong to which sequence. Only bookkeeping: the pages themselves are the decoder's."""

from __future__ import annotations

from dataclasses import dataclass, field

from exo.errors import EngineError
from exo.inference.tinygrad.kernels import PAGE


@dataclass(slots=True)
class Held:
  """A sequence: its place in the page table, its pages in order, its tokens."""
  place: int
  pages: list[int] = field(default_factory=list)
  length: int = 0


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

  def extend(self, sequence: int, length: int) -> list[int]:
    """Give the sequence, new or not, pages for `length` tokens; returns the numbers of new pages that may hold something.

    Raises `EngineError` when all are taken.
    """
    held = self._held.get(sequence)
    if held is None:
      if not self._places:
        raise EngineError(f"all {self.max_sequences} places of the KV cache are taken")
      held = self._held[sequence] = Held(self._places.pop())
    dirty: list[int] = []
    while len(held.pages) * PAGE < length:
      if self._free:
        held.pages.append(self._free.pop())
        dirty.append(held.pages[-1])
      elif self._untouched < self.total:
        held.pages.append(self._untouched)
        self._untouched += 1
        if not self._clean:
          dirty.append(held.pages[-1])
      else:
        raise EngineError(f"all {self.total * PAGE} tokens of the KV cache are taken")
    return dirty

  def truncate(self, sequence: int, length: int) -> None:
    held = self._held.get(sequence)
    if held is not None and length < held.length:
      held.length = length
      keep = -(-length // PAGE)
      self._free.extend(held.pages[keep:])
      del held.pages[keep:]

  def drop(self, sequence: int) -> None:
    held = self._held.pop(sequence, None)
    if held is not None:
      self._free.extend(held.pages)
      self._places.append(held.place)
