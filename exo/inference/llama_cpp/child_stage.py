"""A stage in the process that computes: llama.cpp's model, and the caches of its sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exo.inference.engine import BatchEntry
from exo.inference.kv_type import KvType
from exo.inference.llama_cpp.kv_pool import KvPool
from exo.inference.llama_cpp.llama_model import Floats, LastWords, LlamaContext, LlamaModel, Row
from exo.inference.llama_cpp.stage_cut import cut_of
from exo.inference.llama_cpp.stage_file import SourceTensor, StageFile
from exo.inference.shard import Shard
from exo.inference.weights.file_bytes import FileBytes
from exo.inference.weights.gguf_header import parse_gguf_header

STEP_ROWS = 512  # of one call


class ChildStage:
  """Knows nothing of other nodes: it is told what to compute, and its parent sees to it that that fits."""
  def __init__(
      self, library: Any, words: LastWords, path: Path, shard: Shard, threads: int, kv: KvType, kv_token_bytes: int,
      kv_bytes: int, most_length: int, near_length: int, progress: Callable[[float], None]
  ) -> None:
    """`near_length` as `StageMemory.near_context`. Raises `ModelFilesError`, `UnsupportedModelError`, `OutOfMemoryError`."""
    data = FileBytes(path)
    try:
      header = parse_gguf_header(data.head(), data.size)
    finally:
      data.close()
    self._is_last = shard.is_last
    n_words = header.tensors["token_embd.weight"].shape[0]
    self._cut = cut_of(header.metadata, header.tensors, shard, n_words)
    sources = {name: SourceTensor(info, path) for name, info in header.tensors.items()}
    file = StageFile(self._cut, sources, header.kinds, str(header.metadata["general.architecture"]))
    try:
      self._model = LlamaModel(library, words, file, progress)
    finally:
      file.close()

    def make(length: int, count: int) -> LlamaContext:
      return LlamaContext(self._model, length, count, STEP_ROWS, threads, kv, self._cut.out, self._cut.feed)

    self._pool = KvPool(make, kv_token_bytes, kv_bytes, most_length, near_length)

  @property
  def width(self) -> int:
    return self._model.width

  @property
  def n_words(self) -> int:
    return self._model.n_words

  @property
  def can_shorten(self) -> bool:
    return self._model.can_shorten

  @property
  def takes_tokens(self) -> bool:
    return self._cut.takes_tokens

  def step(self, entries: Sequence[BatchEntry], given: npt.NDArray[Any], out: Floats) -> None:
    """From embeddings or hidden states (tokens, width), or ids where it `takes_tokens` (tokens,), hidden states or logits (wanted rows,
    words), into `out`.

    Every entry is computed by itself, so that its bits depend on no other. Raises `EngineError`; sequences may then be longer than
    they were.
    """
    start = row = 0
    for entry in entries:
      end = start + entry.n_tokens
      for a in range(start, end, STEP_ROWS):
        b = min(a + STEP_ROWS, end)
        position = entry.position + a - start
        # of the marked rows, which are the last ones of an entry, those in this part
        first_wanted = end - entry.logit_rows
        place = self._pool.place(entry.sequence, position + b - a, entry.far)
        rows = [Row(place.number, position + i, a + i >= first_wanted) for i in range(b - a)]
        found = place.context.compute(rows, given[a:b], self._cut.positions)
        at = row if self._is_last else a
        out[at:at + len(found)] = found
        if not np.isfinite(found).all():
          self._pool.poison(entry.sequence)
        row += len(found)
      start = end

  def drop(self, sequence: int) -> None:
    self._pool.drop(sequence)

  def truncate(self, sequence: int, length: int) -> None:
    self._pool.truncate(sequence, length)

  def copy(self, source: int, target: int, length: int, held: int) -> None:
    self._pool.copy(source, target, length, held)

  def close(self) -> None:
    self._pool.close()
    self._model.close()
