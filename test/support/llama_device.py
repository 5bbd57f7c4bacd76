"""The llama.cpp engine in the test's own process."""

from __future__ import annotations

import itertools
from typing import Any

from exo.inference.llama_cpp.child import Child
from exo.inference.llama_cpp.library_choice import chosen_library
from exo.inference.llama_cpp.signals import Signals
from exo.shared_memory import SharedMemory


class HereDevice:
  """What computes is this process, so that a test can look at it."""
  is_plain = False

  def __init__(self) -> None:
    self.memory = SharedMemory()
    file = chosen_library().file
    self.signals = Signals(self.memory)
    self._child, self.numbers, self.generation = Child(file.path, self.memory), itertools.count(1), 1

  def call(
      self, name: str, *arguments: Any, timeout_s: float = 0, generation: int | None = None, watch: Any = None
  ) -> Any:
    return getattr(self._child, name)(*arguments)

  def close(self) -> None:
    self.memory.close()
