"""Texts to tokens by llama.cpp, for vocabularies of GGUF files whose way of cutting texts only it knows.

It reads a file's header alone, in one process for all models: what a strange file does to native code is not the node's
end.
"""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from exo.child_process import ChildGoneError, ChildProcess
from exo.errors import EngineError, EngineUnavailableError
from exo.inference.llama_cpp.library_choice import chosen_library

_TIMEOUT_S = 60.0  # texts are bounded by those who ask; a megabyte takes about a second
_lock = threading.Lock()
_CHILD = "exo.inference.llama_cpp.vocabulary_child"


class LlamaVocabulary:
  """For any thread; blocks."""
  def __init__(self, path: Path) -> None:
    """Raises `EngineUnavailableError` where llama.cpp cannot be used, `ModelFilesError` where it does not know this vocabulary."""
    self._path = str(path)
    ends: list[int] = self._ask("ends", self._path)
    self.eos_ids = frozenset(ends)

  def ids(self, text: str) -> list[int]:
    """Of a text in which the names of special tokens are those tokens. Raises `EngineError`."""
    data: bytes = self._ask("ids", self._path, text)
    found: list[int] = np.frombuffer(data, np.int32).tolist()
    return found

  @staticmethod
  def _ask(name: str, *arguments: Any) -> Any:
    process = _process()
    for is_last in (False, True):  # it may have ended of another's text
      try:
        return process.ask(_TIMEOUT_S, name, *arguments)
      except ChildGoneError as error:
        if is_last:
          raise EngineError(f"llama.cpp ended while it read a vocabulary: {error.message}") from error
      except TimeoutError as error:
        raise EngineError(f"llama.cpp has not read a text within {_TIMEOUT_S:.0f} s") from error
    raise AssertionError


def _process() -> ChildProcess:
  with _lock:
    return _only_process()


@cache
def _only_process() -> ChildProcess:
  try:
    file = chosen_library().file
  except EngineUnavailableError as error:
    raise EngineUnavailableError(f"llama.cpp {error.message}") from error
  return ChildProcess(_CHILD, "vocabularies", (str(file.path), ))
