"""What contexts of a stage take, as the library says of such as take no memory: nothing of it is guessed."""

from __future__ import annotations

import math
from collections.abc import Callable

from exo.inference.llama_cpp.buffer_sizes import BufferSizes
from exo.inference.llama_cpp.llama_model import LlamaContext

_TOLD_OF = 1 << 16  # tokens, over which two decimals of a MiB are nothing
_MOST_SEQUENCES = 16  # for which memory between operators is asked: more need no other


class ContextCosts:
  """`token_bytes` are the keys and values of one token in all layers of the stage, those without attention counted as what they are,
  `sequence_bytes` what recurrent layers keep of a sequence, however long it is.

  `make` makes contexts for so many sequences of so many tokens of a model that is `sized_only`.
  """
  def __init__(self, make: Callable[[int, int], LlamaContext]) -> None:
    """Raises `OutOfMemoryError`."""
    self._make, self._known = make, dict[tuple[int, int], BufferSizes]()
    told = self._sizes(_TOLD_OF, 1)
    self.token_bytes, self.sequence_bytes = math.ceil(told.cache / _TOLD_OF), told.states

  def caches(self, length: int, count: int) -> int:
    """Bytes of what a context keeps of so many sequences of so many tokens."""
    return count * (length * self.token_bytes + self.sequence_bytes)

  def work(self, length: int, count: int) -> int:
    """Bytes of it for what lies between operators, scores of attention where they are all there at once, and logits."""
    # recurrent states are really taken, for every sequence
    asked = 1 if self.sequence_bytes else min(count, _MOST_SEQUENCES)
    told = self._sizes(length, asked)
    return told.compute + math.ceil(told.output / asked) * count

  def whole(self, length: int, count: int) -> int:
    return self.caches(length, count) + self.work(length, count)

  def _sizes(self, length: int, count: int) -> BufferSizes:
    known = self._known.get((length, count))
    if known is None:
      context = self._make(length, count)
      known = self._known[length, count] = context.buffers
      context.close()
    return known
