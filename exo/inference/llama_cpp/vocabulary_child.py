"""The process in which llama.cpp makes tokens of texts."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from exo.child_process import serve
from exo.errors import EngineError, ModelFilesError
from exo.inference.llama_cpp.binding import load_library
from exo.inference.llama_cpp.llama_model import LastWords

_KEPT = 4
# some cuts are made by the C++ library's regular expressions, which call themselves for every character: less than this each, as measured
_STACK_PER_CHARACTER = 1 << 10
_STACK = 1 << 24


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

  def words(self, path: str) -> tuple[bytes, bytes, bytes, list[int], bool]:
    """Of all tokens: the bytes, joined, how many each has and `llama_token_attr` (int32 each); those that end a generation; whether
    every text begins with a BOS."""
    vocabulary, library = self._vocabulary(path), self._library
    count, room = library.llama_vocab_n_tokens(vocabulary), 1 << 10
    piece, kind, is_end = library.llama_token_to_piece, library.llama_vocab_get_attr, library.llama_vocab_is_eog
    parts, buffer = list[bytes](), ctypes.create_string_buffer(room)
    for i in range(count):
      size = piece(vocabulary, i, buffer, room, 0, True)
      while size < 0:
        room = -size
        buffer = ctypes.create_string_buffer(room)
        size = piece(vocabulary, i, buffer, room, 0, True)
      parts.append(ctypes.string_at(buffer, size))
    kinds = np.fromiter((kind(vocabulary, i) for i in range(count)), np.int32, count)
    ends = [i for i in range(count) if is_end(vocabulary, i)]
    sizes = np.array([len(part) for part in parts], np.int32)
    return b"".join(parts), sizes.tobytes(), kinds.tobytes(), ends, bool(library.llama_vocab_get_add_bos(vocabulary))

  def ids(self, path: str, text: str) -> bytes:
    """int32 each. Raises `EngineError`."""
    stack = len(text) * _STACK_PER_CHARACTER
    return self._ids(path, text) if stack < _STACK else _with_stack(stack + _STACK, lambda: self._ids(path, text))

  def _ids(self, path: str, text: str) -> bytes:
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


def _with_stack(size: int, work: Callable[[], bytes]) -> bytes:
  """`work`, on a thread with a stack of so many bytes, of which only what is used takes memory."""
  future, before = Future[bytes](), threading.stack_size(size)

  def run() -> None:
    try:
      future.set_result(work())
    except Exception as error:  # noqa: BLE001 - it is the caller's
      future.set_exception(error)

  thread = threading.Thread(target=run, name="exo-long-text")
  try:
    thread.start()
  except RuntimeError as error:
    raise EngineError(f"there is no room for a text of this length: {error}") from error
  finally:
    threading.stack_size(before)
  thread.join()
  return future.result()


def main() -> None:
  threading.stack_size(_STACK)
  vocabularies = Vocabularies(Path(sys.argv[-1]))
  serve({"words": vocabularies.words, "ids": vocabularies.ids}, 1)
