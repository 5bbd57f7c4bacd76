"""A stage's weights as llama.cpp holds them, and a context in which sequences are computed with them.

Everything here blocks, and belongs in a process of its own: an assertion in native code ends it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exo.errors import CacheReuseError, EngineError, ModelFilesError, OutOfMemoryError, StepAbortedError
from exo.inference.kv_type import KvType
from exo.inference.llama_cpp.binding import EvalCallback, KvOverride, LlamaBatch, LogCallback, ProgressCallback
from exo.inference.llama_cpp.buffer_sizes import ToldSizes
from exo.inference.llama_cpp.sequence_state import SequenceState, read_state
from exo.inference.llama_cpp.stage_file import StageFile
from exo.inference.llama_cpp.virtual_file import VirtualFile

Floats = npt.NDArray[np.float32]
_READ, _MAP = 0, 1  # load_mode
_NO_POOLING = 0
_INFO = 2  # of what the log says
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}  # of keys and values, by GGML's numbers


@dataclass(frozen=True, slots=True)
class Row:
  """A token of a call: the number of its sequence in the context, its position there, and whether its result is wanted."""
  sequence: int
  position: int
  is_wanted: bool = True


class LastWords:
  """What the library has complained of most recently: its functions say that something failed, its log says what. `sizes` are those of
  the buffers that it has told of since they were taken."""
  def __init__(self, library: Any) -> None:
    self._lines: list[str] = []
    self.sizes = ToldSizes()
    self._callback = LogCallback(self._note)  # kept while the library has it
    library.llama_log_set(self._callback, None)

  def _note(self, level: int, text: bytes, _: object) -> None:
    if level >= 3:  # warnings and errors
      self._lines = [*self._lines[-4:], text.decode(errors="replace").strip()]
    elif level == _INFO:
      self.sizes.note(text)

  def take(self) -> str:
    lines, self._lines = self._lines, []
    return "; ".join(line for line in lines if line)


@dataclass(frozen=True, slots=True)
class FileOnDisk:
  """A GGUF file to be opened by its name; `instead` are metadata that count in place of its own. `mapped`: its weights are used where
  they lie in the file, whose pages all processes share, else read."""
  path: Path
  instead: Mapping[str, str | int]
  mapped: bool


class LlamaModel:
  """The weights of a stage. `words` says why something failed, `buffers` what they take."""
  def __init__(
      self,
      library: Any,
      words: LastWords,
      file: StageFile | FileOnDisk,
      progress: Callable[[float], None],
      *,
      plain: bool = False,
      sized_only: bool = False
  ) -> None:
    """`plain`: weights are used as they lie in the file. `sized_only`: nothing is read, and contexts of it take no memory for keys and
    values, but tell what they would. Raises `ModelFilesError` with what the library says of it."""
    self.library, self._words = library, words
    params = library.llama_model_default_params()
    params.n_gpu_layers, params.load_mode, params.no_alloc = 0, _READ, sized_only
    params.use_extra_bufts = not plain
    if isinstance(file, FileOnDisk) and file.mapped:
      # what is laid out anew would be there beside the map
      params.use_extra_bufts, params.load_mode = False, _READ if sized_only else _MAP

    def report(done: float, _: object) -> bool:
      progress(done)
      return True

    callback = ProgressCallback(report)
    params.progress = callback
    words.sizes.take()
    self.pointer = self._load(file, params)
    if not self.pointer:
      raise ModelFilesError(f"llama.cpp does not load it: {words.take() or 'it does not say why'}")
    self.buffers = words.sizes.take()
    self.width: int = library.llama_model_n_embd(self.pointer)
    #: whether a text may be cut back to any length; recurrent layers keep what they made of it as a whole
    self.can_shorten = not (
        library.llama_model_is_recurrent(self.pointer) or library.llama_model_is_hybrid(self.pointer)
    )
    self.n_words: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.pointer))

  def _load(self, file: StageFile | FileOnDisk, params: Any) -> Any:
    if isinstance(file, FileOnDisk):
      overrides = KvOverride.several(file.instead)
      params.kv_overrides = ctypes.cast(overrides, ctypes.c_void_p)
      return self.library.llama_model_load_from_file(os.fsencode(file.path), params)
    stream = VirtualFile(file)
    try:
      pointer = self.library.llama_model_load_from_file_ptr(stream.stream, params)
    finally:
      stream.close()
    if not pointer and stream.error is not None:
      raise ModelFilesError(f"its file cannot be read: {stream.error}") from stream.error
    return pointer

  def close(self) -> None:
    if self.pointer:
      self.library.llama_model_free(self.pointer)
      self.pointer = None


class LlamaContext:
  """`n_sequences` sequences of up to `length` tokens each, numbered from 0, which share nothing (own streams).

  `out` and `feed` are as in `StageCut`: nodes of the graph that are read and overwritten. `buffers` is what it takes.
  """
  def __init__(
      self,
      model: LlamaModel,
      length: int,
      n_sequences: int,
      n_rows: int,
      threads: int,
      kv: KvType,
      out: str = "",
      feed: str = "",
      abort: tuple[int, int] = (0, 0),
      n_outputs: int = 0
  ) -> None:
    """Computes at most `n_rows` tokens a call, and logits of at most `n_outputs` of them (0: of all), for which there is memory as long
    as it is open; `abort` is as `Signals.abort_callback`. Raises `OutOfMemoryError`."""
    self._model, self._library, self.length, self.n_sequences = model, model.library, length, n_sequences
    self._out, self._feed = out.encode(), feed.encode()
    self._hidden: Floats | None = None
    self._given: Floats | None = None
    params = self._library.llama_context_default_params()
    params.n_ctx, params.n_seq_max = length * n_sequences, n_sequences
    params.n_batch = params.n_ubatch = n_rows
    self._most_outputs = params.n_outputs_max = max(n_outputs, n_sequences) if n_outputs else n_rows
    params.n_threads = params.n_threads_batch = threads
    params.type_k, params.type_v = TYPES[kv.k], TYPES[kv.v]
    params.flash_attn, params.kv_unified, params.swa_full = int(kv.flash), False, True
    params.abort, params.abort_data = abort
    params.pooling = _NO_POOLING  # embeddings are those of tokens, whatever the file says
    self._callback = EvalCallback(self._seen)  # kept while the library has it
    if out or feed:
      params.cb_eval = self._callback
    model._words.sizes.take()
    self._pointer = self._library.llama_init_from_model(model.pointer, params)
    if not self._pointer:
      raise OutOfMemoryError(
          f"llama.cpp gives no context for {n_sequences} sequences of {length} tokens: {model._words.take()}"
      )
    self.buffers = model._words.sizes.take()
    self._memory = self._library.llama_get_memory(self._pointer)

  def _seen(self, tensor: int, ask: bool, _: object) -> bool:
    name = self._library.ggml_get_name(tensor)
    if ask:
      return bool(name == self._out or (self._feed and name == self._feed))
    if name == self._feed and self._given is not None:
      self._library.ggml_backend_tensor_set(tensor, self._given.ctypes.data, 0, self._given.nbytes)
      return True
    found = np.empty(self._library.ggml_nelements(tensor), np.float32)
    self._library.ggml_backend_tensor_get(tensor, found.ctypes.data, 0, found.nbytes)
    self._hidden = found
    return False  # what follows in the graph is not wanted

  def compute(self, rows: Sequence[Row], given: npt.NDArray[Any], positions: int) -> Floats:
    """One call on embeddings, or hidden states, (rows, width), each at `positions` positions, or on the ids of tokens (rows,), int32.

    Returns hidden states (rows, width), or for the last stage logits (wanted rows, words), which are valid until the next call.
    Raises `EngineError`; what was there before the call is as it was, and after `StepAbortedError` a part of this may be behind it.
    """
    n = len(rows)
    wanted = sum(row.is_wanted for row in rows)
    if not self._out:
      self._check_outputs(wanted)
    self._decode(rows, given, positions)
    if self._out:
      if self._hidden is None:
        raise EngineError(f"llama.cpp has no node {self._out.decode()}")
      return self._hidden.reshape(n, -1)
    if not wanted:
      return np.empty((0, self._model.n_words), np.float32)
    return np.ctypeslib.as_array(self._library.llama_get_logits(self._pointer), (wanted, self._model.n_words))

  def final_hidden(self, rows: Sequence[Row], given: npt.NDArray[Any], positions: int) -> Floats:
    """As `compute` of a last stage, but what the head sees of all rows, which are all wanted: (rows, width), valid until the next call."""
    self._check_outputs(len(rows))
    self._library.llama_set_embeddings(self._pointer, True)
    try:
      self._decode(rows, given, positions)
      found = self._library.llama_get_embeddings(self._pointer)
    finally:
      self._library.llama_set_embeddings(self._pointer, False)
    return np.ctypeslib.as_array(found, (len(rows), self._model.width))

  def _check_outputs(self, count: int) -> None:
    """The library would end the process."""
    if count > self._most_outputs:
      raise EngineError(
          f"llama.cpp was asked for results of {count} rows in a call, and has room for {self._most_outputs}"
      )

  def _decode(self, rows: Sequence[Row], given: npt.NDArray[Any], positions: int) -> None:
    given = np.ascontiguousarray(given)
    batch, keep = self._batch(rows, given, positions)
    self._given, self._hidden = given if self._feed else None, None
    status = self._library.llama_decode(self._pointer, batch)
    del keep
    if status:
      raise _error(status, self._model._words.take())

  def _batch(self, rows: Sequence[Row], given: npt.NDArray[Any], positions: int) -> tuple[LlamaBatch, list[Any]]:
    """With what must stay alive as long as the batch is used."""
    n = len(rows)
    sequences = (ctypes.c_int32 * n)(*(row.sequence for row in rows))
    at = np.zeros((positions, n), np.int32)
    at[:min(positions, 3)] = [row.position for row in rows]  # M-RoPE's: three alike, then none
    counts = np.ones(n, np.int32)
    # every token of a stage that is no last one is marked, since its result is read
    marked = np.array([bool(self._out) or row.is_wanted for row in rows], np.int8)
    address = ctypes.addressof(sequences)
    lists = (ctypes.POINTER(ctypes.c_int32) *
             n)(*(ctypes.cast(address + 4 * i, ctypes.POINTER(ctypes.c_int32)) for i in range(n)))
    batch = LlamaBatch(
        n_tokens=n, n_seq_id=_as(counts, ctypes.c_int32), seq_id=lists, logits=_as(marked, ctypes.c_int8)
    )
    ids = given if given.dtype == np.int32 else np.zeros(n, np.int32)
    batch.pos = _as(at, ctypes.c_int32)  # of tokens the first row is read
    if self._feed or ids is given:  # where there is a feed, what is made of these is overwritten
      batch.token = _as(ids, ctypes.c_int32)
    else:
      batch.embd = _as(given, ctypes.c_float)
    return batch, [sequences, at, counts, marked, lists, ids, given]

  def drop(self, sequence: int) -> None:
    self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)

  def truncate(self, sequence: int, length: int) -> None:
    """Raises `CacheReuseError` where its layers keep what cannot be shortened; then it is unchanged."""
    if not self._library.llama_memory_seq_rm(self._memory, sequence, length, -1):
      raise CacheReuseError(f"llama.cpp cannot shorten what this model keeps of a text to {length} tokens")

  def held(self, sequence: int) -> int:
    """Tokens of a sequence."""
    return int(self._library.llama_memory_seq_pos_max(self._memory, sequence)) + 1

  def state(self, sequence: int) -> SequenceState:
    """All that is kept of a sequence, to be put into another one, of this context or another of the same model.

    Raises `CacheReuseError` as `read_state`.
    """
    size = self.state_bytes(sequence)
    data = np.empty(size, np.uint8)
    got = self._library.llama_state_seq_get_data(self._pointer, data.ctypes.data, size, sequence)
    return read_state(data[:got], self.n_sequences, sequence, self.held(sequence))

  def state_bytes(self, sequence: int) -> int:
    """What `state` takes at least."""
    return int(self._library.llama_state_seq_get_size(self._pointer, sequence))

  def set_state(self, sequence: int, state: SequenceState) -> None:
    """Raises `EngineError` where there is no room for it."""
    data = state.written(self.n_sequences, sequence)
    if not self._library.llama_state_seq_set_data(self._pointer, data.ctypes.data, len(data), sequence):
      self.drop(sequence)
      raise EngineError(f"llama.cpp does not take a sequence over: {self._model._words.take()}")

  def close(self) -> None:
    if self._pointer:
      self._library.llama_free(self._pointer)
      self._pointer = None


def _as(array: npt.NDArray[Any], kind: Any) -> Any:
  return array.ctypes.data_as(ctypes.POINTER(kind))


def _error(status: int, words: str) -> EngineError:
  """Of `llama_decode`: 1 is a full cache, which is only the affair of who asked."""
  if status == 2:
    return StepAbortedError("llama.cpp was told to end the step")
  if status == 1:
    return OutOfMemoryError("llama.cpp has no room left for the request in its KV cache")
  return EngineError(f"llama.cpp gave up a step with {status}: {words or 'it does not say why'}")
