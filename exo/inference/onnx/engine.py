"""The onnx engine: a shard as one onnxruntime session, fastest where there is only a CPU.

Decodes of one step run as one batch over neighbouring rows of the KV cache; every longer entry is a run of its own.
Bindings of a batch to its rows are kept, since binding sixty buffers anew costs as much as several layers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from exo.inference.embedding_table import EmbeddingTable
from exo.inference.engine import (
    Batch,
    BatchEntry,
    InferenceEngine,
    LoadOptions,
    LogitsOf,
    StageMemory,
    gather_logit_rows,
)
from exo.inference.exactness import Exactness
from exo.inference.kv_budget import KvBudget
from exo.inference.onnx.decoder import DecoderGraph
from exo.inference.onnx.kv_arena import Floats, KvArena
from exo.inference.onnx.memory import use_huge_pages
from exo.inference.onnx.probe import QUANTIZE
from exo.inference.quantize import choose_quantize
from exo.inference.shard import Shard
from exo.inference.stage_base import StageBase
from exo.inference.weights.stage_tensors import StageTensors

if TYPE_CHECKING:
  from exo.inference.weights.checkpoint import Checkpoint

_MAX_BINDINGS = 32
_SCRATCH_BYTES = 2**28  # of a run's attention: a number for each of its tokens, heads and columns of a row


class _Binding:
  """Buffers of one shape bound to one window of KV rows. Fill `x`, `seqlens`, `total` and `rows`, then `run`.

  Where the stage doubles lone rows, they are there twice for it, and once for whoever fills and reads.
  """
  def __init__(
      self,
      stage: OnnxStage,
      start: int,
      batch: int,
      length: int,
      n_rows: int,
      far: bool,
      hidden: str | None = None
  ) -> None:
    self._session, self._io = stage.session, stage.session.io_binding()
    self.seqlens, self.total = np.zeros(batch, np.int32), np.zeros(1, np.int32)
    times = 2 if stage.doubles and batch * length == 1 else 1
    x = np.zeros((batch, times * length, stage.hidden_size), np.float32)
    self.x, self._twin = x[:, :length], x[:, length:]
    rows = np.zeros(2 if stage.doubles_rows and n_rows == 1 else n_rows, np.int64)
    self.rows, self._twin_rows = rows[:n_rows], rows[n_rows:]
    inputs: list[tuple[str, npt.NDArray[Any]]] = [("x", x), ("seqlens_k", self.seqlens), ("total", self.total)]
    if stage.shard.is_last:
      inputs.append(("rows", rows))
    if stage.doubles:
      self._lengths = np.array([length], np.int64), np.array([1, times, 1], np.int64)
      inputs += zip(("tokens", "repeat"), self._lengths, strict=True)
    inputs += [(name, tables[far]) for name, tables in stage.tables.items()]
    if stage.shard.is_last and hidden is None:
      y = np.zeros((len(rows), 1, stage.vocab_size), np.float32)
      self.y = y[:n_rows]
    else:
      y = np.zeros(x.shape, np.float32)
      self.y = y[:, :length]
    for name, array in inputs:
      self._io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    self._io.bind_output(hidden or stage.output_name, "cpu", 0, np.float32, y.shape, y.ctypes.data)
    for layer, pair in zip(stage.shard.layers, stage.arena.arrays, strict=True):
      for part, array in zip("kv", pair, strict=True):
        view = array[start:start + batch]
        args = ("cpu", 0, np.float32, view.shape, view.ctypes.data)
        self._io.bind_input(f"past_{part}.{layer}", *args)
        self._io.bind_output(f"present_{part}.{layer}", *args)

  def run(self) -> Floats:
    self._twin[:], self._twin_rows[:] = self.x[:, :self._twin.shape[1]], self.rows[:len(self._twin_rows)]
    self._session.run_with_iobinding(self._io)
    return self.y


class OnnxStage(StageBase):
  library = "onnxruntime"

  def __init__(
      self, shard: Shard, checkpoint: Checkpoint, options: LoadOptions, progress: Callable[[float], None]
  ) -> None:
    config, tensors = checkpoint.config, StageTensors(checkpoint, shard)
    self.hidden_size, self.vocab_size, self._n_heads = config.hidden_size, config.vocab_size, config.n_heads
    budget = KvBudget.of(shard, config, options, np.dtype(np.float32).itemsize)
    bits = choose_quantize("onnx", QUANTIZE, options.quantize).bits
    decoder = DecoderGraph(shard, tensors, budget.max_context, bits)
    graph = decoder.build(progress)
    self.output_name, self._hidden_name, weight_bytes = decoder.output, decoder.hidden, graph.weight_bytes
    self.tables, self.doubles, self.doubles_rows = decoder.tables, decoder.doubles, decoder.doubles_rows
    self._embedding = EmbeddingTable(tensors) if shard.is_first else None
    n_words = config.vocab_size if self._embedding is None else self._embedding.n_words
    self.arena = KvArena(
        shard.layer_count, options.max_sequences, config.n_kv_heads, budget.max_context, config.head_dim
    )
    memory = StageMemory(
        weight_bytes,
        budget.token_bytes,
        budget.tokens(weight_bytes),
        self.arena.rows,
        budget.max_context,
        near_context=config.near_context
    )
    super().__init__(shard, memory, config.hidden_size, n_words)
    self.session: ort.InferenceSession = graph.session(options.threads)
    use_huge_pages()
    self._bindings: OrderedDict[tuple[int, int, bool], _Binding] = OrderedDict()
    self._bound = self.arena.generation
    progress(1.0)

  @property
  def exactness(self) -> Exactness:
    """One token of a sequence takes other kernels than several, however many sequences there are."""
    return Exactness(draft_rows=1, as_prompt=False)

  def step(self, batch: Batch) -> npt.NDArray[Any]:
    return self._computed(batch, self._logits_or_hidden)

  def hidden_states(self, batch: Batch) -> npt.NDArray[np.float32]:
    return self._computed(batch, self._last_hidden)

  def length(self, sequence: int) -> int:
    return self.arena.length(sequence)

  def _commit(self, entries: tuple[BatchEntry, ...]) -> None:
    for entry in entries:
      self.arena.extend(entry.sequence, entry.n_tokens)

  def _begin(self, batch: Batch) -> Floats:
    """Every sequence's row and room, and what goes into the first of the layers."""
    self.arena.make_room({entry.sequence: entry.position + entry.n_tokens for entry in batch.entries})
    if batch.hidden is not None:
      return batch.hidden
    assert self._embedding is not None
    return self._embedding(batch.token_ids)

  def _logits_or_hidden(self, batch: Batch) -> Floats:
    x = self._begin(batch)
    if all(entry.n_tokens == 1 and entry.far == batch.entries[0].far for entry in batch.entries):
      return self._run_singles(batch.entries, x)
    if len(batch.entries) == 1:
      return self._run_one(batch.entries[0], x)
    return self._run_mixed(batch, x)

  def _last_hidden(self, batch: Batch) -> Floats:
    x, parts, start = self._begin(batch), [], 0
    for entry in batch.entries:
      parts.append(self._run_one(entry, x[start:start + entry.n_tokens], self._hidden_name))
      start += entry.n_tokens
    return np.concatenate(parts)

  def _run_mixed(self, batch: Batch, x: Floats) -> Floats:
    """Decodes as one batch, every longer entry by itself."""
    starts = np.cumsum([0, *(entry.n_tokens for entry in batch.entries)])
    rows_before = np.cumsum([0, *(entry.logit_rows for entry in batch.entries)])
    if self.shard.is_last:
      out = np.empty((int(rows_before[-1]), self.vocab_size), np.float32)
    else:
      out = np.empty((batch.n_tokens, self.hidden_size), np.float32)

    def place(i: int, y: Floats) -> None:
      entry = batch.entries[i]
      start, rows = (rows_before[i], entry.logit_rows) if self.shard.is_last else (starts[i], entry.n_tokens)
      out[start:start + rows] = y

    for far in (False, True):
      singles = [i for i, entry in enumerate(batch.entries) if entry.n_tokens == 1 and entry.far == far]
      if not singles:
        continue
      y, row = self._run_singles([batch.entries[i] for i in singles], x[starts[singles]]), 0
      for i in singles:
        rows = batch.entries[i].logit_rows if self.shard.is_last else 1
        place(i, y[row:row + rows])
        row += rows
    for i, entry in enumerate(batch.entries):
      if entry.n_tokens > 1:
        place(i, self._run_one(entry, x[starts[i]:starts[i] + entry.n_tokens]))
    return out

  def _run_singles(self, entries: Sequence[BatchEntry], x: Floats) -> Floats:
    """One token each of several sequences, all near or all far, as one batch in the order of their rows."""
    start = self.arena.window([entry.sequence for entry in entries])
    binding = self._binding(start, len(entries), entries[0].far)
    if len(entries) == 1:
      binding.x[0] = x
      binding.seqlens[0], binding.total[0] = entries[0].position, entries[0].position + 1
      y = binding.run()
      return y[:entries[0].logit_rows, 0] if self.shard.is_last else y[0].copy()
    row_of = [self.arena.row(entry.sequence) - start for entry in entries]
    binding.x[row_of, 0] = x
    binding.seqlens[row_of] = [entry.position for entry in entries]
    binding.total[0] = max(entry.position for entry in entries) + 1
    y = binding.run()
    if not self.shard.is_last:
      return y[row_of, 0]
    wanted = [row for entry, row in zip(entries, row_of, strict=True) if entry.logit_rows]
    first = wanted[0] if wanted else 0
    if wanted == list(range(first, first + len(wanted))):  # no copy, which would cost more than sampling does
      return y[first:first + len(wanted), 0]
    return y[wanted, 0]

  def _binding(self, start: int, batch: int, far: bool) -> _Binding:
    key = (start, batch, far)
    if self._bound != self.arena.generation:  # to arrays that are no longer the cache
      self._bindings.clear()
      self._bound = self.arena.generation
    if key not in self._bindings:
      if len(self._bindings) >= _MAX_BINDINGS:
        self._bindings.popitem(last=False)
      self._bindings[key] = _Binding(self, start, batch, 1, batch, far)
      self._bindings[key].rows[:] = np.arange(batch)
    self._bindings.move_to_end(key)
    return self._bindings[key]

  def _run_one(self, entry: BatchEntry, x: Floats, hidden: str | None = None) -> Floats:
    """The entry by itself; in parts where its attention's scratch memory, which no budget knows of, would grow too large.

    `hidden` names another output than the stage's own.
    """
    n, most = entry.n_tokens, max(16, _SCRATCH_BYTES // (4 * self._n_heads * self.arena.room))
    if n <= most:
      return self._run_part(entry, x, hidden)
    parts = []
    for start in range(0, n, most):
      end = min(n, start + most)
      logits = LogitsOf.NONE if entry.logits == LogitsOf.LAST and end < n else entry.logits
      part = BatchEntry(entry.sequence, entry.position + start, end - start, logits, entry.far)
      parts.append(self._run_part(part, x[start:end], hidden))
    return np.concatenate(parts)

  def _run_part(self, entry: BatchEntry, x: Floats, hidden: str | None) -> Floats:
    binding = _Binding(self, self.arena.row(entry.sequence), 1, entry.n_tokens, entry.logit_rows, entry.far, hidden)
    binding.x[0] = x
    binding.seqlens[0] = entry.position + entry.n_tokens - 1
    binding.total[0] = entry.position + entry.n_tokens
    binding.rows[:] = gather_logit_rows((entry, ))
    y = binding.run()
    out: Floats = y[:, 0] if self.shard.is_last and hidden is None else y[0]
    return out

  def drop(self, sequence: int) -> None:
    self.arena.drop(sequence)

  def truncate(self, sequence: int, length: int) -> None:
    self.arena.truncate(sequence, length)

  def _copy(self, source: int, target: int, length: int) -> None:
    self.arena.copy(source, target, length)

  def close(self) -> None:
    self._bindings.clear()
    self.arena.close()
    del self.session


def create() -> InferenceEngine:
  return InferenceEngine("onnx", OnnxStage)
