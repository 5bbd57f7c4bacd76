"""The process in which llama.cpp makes tokens of texts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from exo.child_process import serve
from exo.errors import EngineError, ModelFilesError
from exo.inference.llama_cpp.binding import load_library
from exo.inference.llama_cpp.llama_model import LastWords

_KEPT = 4


class Vocabularies:
  """Of the files that were asked for most recently."""
  def __init__(self, path: Path) -> None:
    self._path = path
    self._loaded: tuple[Any, LastWords] | None = None
    self._models: dict[tuple[str, int, int, int], Any] = {}

  @property
  def _library(self) -> Any:
    """Loaded when it is first needed: what is wrong with it is an answer."""
    if self._loaded is None:
      library = load_library(self._path)
      self._loaded = library, LastWords(library)
      library.llama_backend_init()
    return self._loaded[0]

  def _vocabulary(self, path: str) -> Any:
    """Raises `EngineUnavailableError`, `ModelFilesError`."""
    library = self._library
    try:
      stat = Path(path).stat()
    except OSError as error:
      raise ModelFilesError(f"{Path(path).name} cannot be read: {error.strerror}") from error
    key = (path, stat.st_size, stat.st_mtime_ns, stat.st_ino)  # another file may come to lie there
    model = self._models.pop(key, None)
    if model is None:
      params = library.llama_model_default_params()
      params.vocab_only = True
      model = library.llama_model_load_from_file(path.encode(), params)
      if not model:
        assert self._loaded is not None
        why = self._loaded[1].take() or "it does not say why"
        raise ModelFilesError(f"llama.cpp does not read the vocabulary of {Path(path).name}: {why}")
    self._models[key] = model
    if len(self._models) > _KEPT:
      library.llama_model_free(self._models.pop(next(iter(self._models))))
    return library.llama_model_get_vocab(model)

  def ends(self, path: str) -> list[int]:
    """The tokens that end a generation."""
    vocabulary = self._vocabulary(path)
    count = self._library.llama_vocab_n_tokens(vocabulary)
    return [i for i in range(count) if self._library.llama_vocab_is_eog(vocabulary, i)]

  def ids(self, path: str, text: str) -> bytes:
    """int32 each."""
    vocabulary, data = self._vocabulary(path), text.encode()
    room = len(data) + 8
    while True:
      found = np.empty(room, np.int32)
      count = self._library.llama_tokenize(vocabulary, data, len(data), found.ctypes.data, room, False, True)
      if count >= 0:
        return found[:count].tobytes()
      if -count <= room:
        raise EngineError("llama.cpp cannot make tokens of this text")
      room = -count


def main() -> None:
  vocabularies = Vocabularies(Path(sys.argv[-1]))
  serve({"ends": vocabularies.ends, "ids": vocabularies.ids}, 1)
