"""What parsers of answers share: text comes in pieces, and modes take what they can from what has not been read yet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from exo.api.chat_parts import Part


class ModeParser(ABC):
  """A mode takes from `_buffer` what it can, and sets `_mode` where another one goes on. What it decides must depend on nothing but the
  text up to there, so that the pieces in which that comes make no difference; `_final`: no more comes.
  """
  _mode: Callable[[], Iterator[Part]]

  def __init__(self) -> None:
    self._buffer = ""
    self._final = False
    self._calls = 0  # of tools, so far

  @property
  def called(self) -> bool:
    return self._calls > 0

  @property
  @abstractmethod
  def thinking(self) -> bool:
    """Whether what comes now are thoughts."""

  def push(self, text: str) -> list[Part]:
    self._buffer += text
    return list(self._run())

  def finish(self) -> list[Part]:
    self._final = True
    return list(self._run())

  def _run(self) -> Iterator[Part]:
    """Let the modes work until none of them can go on."""
    while True:
      before = (len(self._buffer), self._mode)
      yield from self._mode()
      if (len(self._buffer), self._mode) == before:
        return
