"""The words of GGUF files as llama.cpp knows them.

It reads a file's header alone, in one process for all models: what a strange file does to native code is not the node's end. What tokens
are is asked once and known here; of which ones a text is made, the process says.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from exo.child_process import ChildGoneError, ChildProcess
from exo.errors import EngineError, EngineUnavailableError
from exo.inference.llama_cpp.library_choice import chosen_library
from exo.inference.vocabulary import Vocabulary

_TIMEOUT_S = 60.0  # texts are bounded by those who ask; a megabyte takes about a second
_lock = threading.Lock()
_CHILD = "exo.inference.llama_cpp.vocabulary_child"
_CONTROL, _BYTE = 8, 32  # llama_token_attr


class LlamaVocabulary(Vocabulary):
  """For any thread; blocks. `end_ids` end a generation; `add_bos`: every text begins with a BOS."""
  joins_bytes = True

  def __init__(self, path: Path) -> None:
    """Raises `EngineUnavailableError` where llama.cpp cannot be used, `ModelFilesError` where it does not know this vocabulary,
    `EngineError` where it fails."""
    self._path = str(path)
    data, sizes, kinds, ends, self.add_bos = self._ask("words", self._path)
    self._data: bytes = data
    self._ends = np.cumsum(np.frombuffer(sizes, np.int32), dtype=np.int64)
    self._kinds = np.frombuffer(kinds, np.int32)
    self.end_ids: frozenset[int] = frozenset(ends)
    self.special = frozenset(np.flatnonzero(self._kinds & _CONTROL).tolist())
    # some put a space before every text, which is no part of it
    first = self.ids("a")[:1]
    self.stripped_spaces = int(bool(first) and self.token_bytes(first[0])[:1] == b" ")

  @property
  def size(self) -> int:
    return len(self._ends)

  def ids(self, text: str) -> list[int]:
    """Raises `EngineError`."""
    data: bytes = self._ask("ids", self._path, text)
    found: list[int] = np.frombuffer(data, np.int32).tolist()
    return found

  def token_bytes(self, token_id: int) -> bytes:
    if not 0 <= token_id < len(self._ends):
      return b""
    return self._data[self._ends[token_id - 1] if token_id else 0:self._ends[token_id]]

  def id_of(self, name: str) -> int | None:
    return self.ids_of([name]).get(name)

  def ids_of(self, names: Iterable[str]) -> dict[str, int]:
    """In one pass over the words: a vocabulary may have thousands of special tokens."""
    wanted = {name.encode(): name for name in names}
    as_long = np.isin(np.diff(self._ends, prepend=0), list({len(word) for word in wanted}))
    found: dict[str, int] = {}
    for token_id in np.flatnonzero(as_long).tolist():
      name = wanted.get(self.token_bytes(token_id))
      # the first of several, and a word rather than a byte
      if name is not None and (name not in found or self._kinds[found[name]] & _BYTE > self._kinds[token_id] & _BYTE):
        found[name] = token_id
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
