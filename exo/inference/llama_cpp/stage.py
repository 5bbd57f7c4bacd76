"""A stage whose numbers come from a process of their own, in which llama.cpp computes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from exo.child_process import ChildGoneError, ChildProcess
from exo.errors import CacheReuseError, EngineEndedError, EngineError, EngineUnavailableError, UnsupportedModelError
from exo.inference.embedding_table import EmbeddingTable
from exo.inference.engine import Batch, BatchEntry, LoadOptions, StageMemory, Study
from exo.inference.exactness import CAREFUL, Exactness
from exo.inference.kv_budget import KvBudget
from exo.inference.kv_type import KvType
from exo.inference.llama_cpp.buffer_sizes import BufferSizes
from exo.inference.llama_cpp.cache_plan import ROWS_AT_ONCE, CachePlan, CacheRoom
from exo.inference.llama_cpp.library_choice import chosen_library
from exo.inference.llama_cpp.probe import WEIGHTS, probe, repertoire
from exo.inference.llama_cpp.signals import SIGNAL_BYTES, Signals
from exo.inference.llama_cpp.stage_study import stage_study
from exo.inference.llama_cpp.virtual_file import has_virtual_files
from exo.inference.shard import Shard
from exo.inference.stage_base import StageBase
from exo.inference.weight_mode import WeightMode
from exo.inference.weights.gguf_file import GgufFile
from exo.inference.weights.parts import shard_tensors
from exo.inference.weights.stage_tensors import StageTensors
from exo.inference.whole_blocks import whole_blocks
from exo.shared_memory import SharedMemory

if TYPE_CHECKING:
  from exo.inference.weights.checkpoint import Checkpoint

_LINE = 64
# so long that only what hangs takes longer: of a load by its bytes, of a step by its tokens
_SOON_S, _LOAD_BYTES_PER_S, _TOKEN_S = 120.0, 5e6, 10.0
_SHARED_BYTES = 16 << 20  # of memory that stays; logits of a whole prompt take more
# threads that sleep at once are slow to wake, and such as spin for long take the core from each other where somebody else wants it, too
ENVIRONMENT = {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "1000", "GGML_NO_BACKTRACE": "1"}


class Device:
  """The process for one device, and the memory that it shares with the node. It is started by the first call."""
  def __init__(self) -> None:
    offer = probe()
    if offer.missing:
      raise EngineUnavailableError(f"llama.cpp {offer.missing}")
    self._library = library = chosen_library()
    self.memory = SharedMemory()
    self.signals = Signals(self.memory)
    self._process = ChildProcess(
        "exo.inference.llama_cpp.child", "llama.cpp", (str(library.file.path), str(self.memory.descriptor)),
        ENVIRONMENT, (self.memory.descriptor, )
    )
    self._generation = 0
    self.numbers = itertools.count(1)

  def __del__(self) -> None:
    """An engine that was made anew leaves no process behind."""
    if hasattr(self, "_process"):
      self._process.kill()
      self.memory.close()

  @property
  def is_plain(self) -> bool:
    """Its weights are not laid out anew for this processor."""
    return bool(self._library.plain)

  @property
  def generation(self) -> int:
    """Which process it is: what one has loaded, the next one has not."""
    return self._generation

  def call(
      self,
      name: str,
      *arguments: Any,
      timeout_s: float = _SOON_S,
      generation: int | None = None,
      watch: Callable[[], None] | None = None
  ) -> Any:
    """`watch` is as of `ChildProcess.ask`. Raises what the other side raises, and `EngineEndedError` where it has ended, or has not answered in time and so is ended."""
    runs = self._process.pid is not None and self._process.generation == self._generation
    if generation is not None and not (runs and generation == self._generation):
      raise EngineEndedError("llama.cpp has ended, and with it what it had loaded", computing=0)
    try:
      if not runs:
        self._process.ask(_SOON_S, "start")
        self._generation = self._process.generation
      return self._process.ask(timeout_s, name, *arguments, watch=watch)
    except TimeoutError as error:
      text = f"llama.cpp has not ended a {name} within {timeout_s:.0f} s, and was ended itself"
      raise EngineEndedError(text, computing=1) from error
    except ChildGoneError as error:
      raise EngineEndedError(f"llama.cpp ended in a {name}: {error.message}", computing=1) from error


class LlamaCppStage(StageBase):
  library = "llama.cpp"

  def __init__(
      self,
      device: Device,
      shard: Shard,
      checkpoint: Checkpoint,
      options: LoadOptions,
      progress: Callable[[float], None],
      virtual: bool | None = None
  ) -> None:
    """`virtual`: whether the C library reads what Python makes; None for what it is found to do. No elsewhere than here."""
    repertoire().check("llama_cpp", checkpoint.facts)
    assert isinstance(checkpoint, GgufFile)
    config = checkpoint.config
    if config.near_context % ROWS_AT_ONCE:
      raise UnsupportedModelError(f"llama.cpp has no contexts of {config.near_context} tokens")
    self._device, self._number = device, next(device.numbers)
    self._lengths: dict[int, int] = {}
    self._torn: set[int] = set()  # sequences that may hold more on the other side
    self._expected: dict[int, int] = {}  # tokens that sequences will hold
    weight_bytes = sum(checkpoint.tensor_bytes(name) for name in shard_tensors(checkpoint, shard))
    kv = KvType.choose(options.kv_type, checkpoint.head_dims)
    budget = KvBudget.of(shard, config, options, kv.element_bytes)
    # what the plan reckons with between operators is not in what is given here
    reckoned = WEIGHTS.overhead(checkpoint.size) - WEIGHTS.fixed_bytes
    room = CacheRoom(
        max(0, options.memory_bytes - weight_bytes), budget.left_bytes(weight_bytes), reckoned,
        whole_blocks(budget.max_context, ROWS_AT_ONCE), config.near_context, options.max_sequences, options.max_context
        is not None, options.max_kv_tokens
    )
    made_files = None if options.made_files is None else str(options.made_files)
    has_streams = has_virtual_files() if virtual is None else virtual
    weights = (str(options.weights or WeightMode.PRIVATE), has_streams, made_files, device.is_plain)
    self._takes_tokens = bool(checkpoint.whole_only)
    self._embedding = EmbeddingTable(
        StageTensors(checkpoint, shard)
    ) if shard.is_first and not self._takes_tokens else None
    device.signals.progress = 0.0
    self._width, self._n_words, can_shorten, held_bytes, planned = device.call(
        "load",
        self._number,
        str(checkpoint.path), (shard.model_id, shard.start_layer, shard.end_layer, shard.n_layers),
        options.threads, (kv.k, kv.v, kv.flash),
        astuple(room),
        weight_bytes,
        weights,
        timeout_s=_SOON_S + weight_bytes / _LOAD_BYTES_PER_S,
        watch=lambda: progress(device.signals.progress)
    )
    self._generation = device.generation
    plan = CachePlan(*planned)
    # with windows, what has left them does not move along, and a text cannot always be cut back
    may_draft = can_shorten and not checkpoint.own("attention.sliding_window")
    memory = StageMemory(
        held_bytes,
        plan.token_bytes,
        plan.tokens,
        plan.sequences,
        min(budget.max_context, plan.longest, max(2, plan.tokens)),
        max_drafting=1 if may_draft else 0,
        near_context=config.near_context,
        working_bytes=plan.fixed_bytes + max(0, plan.work_bytes - reckoned),
        indivisible=not can_shorten
    )
    super().__init__(shard, memory, config.hidden_size, config.vocab_size)
    self._exactness = CAREFUL
    self._study: Study | None = stage_study(checkpoint, shard, kv, options.threads, weights, ENVIRONMENT)
    progress(1.0)

  @property
  def exactness(self) -> Exactness:
    return self._exactness

  def learn(self, exactness: Exactness) -> None:
    self._call("learn", *astuple(exactness))
    self._exactness, self._study = exactness, None

  def to_study(self) -> Study | None:
    return self._study

  def _call(self, name: str, *arguments: Any, timeout_s: float = _SOON_S) -> Any:
    return self._device.call(name, self._number, *arguments, timeout_s=timeout_s, generation=self._generation)

  def step(self, batch: Batch) -> npt.NDArray[Any]:
    wanted = sum(entry.logit_rows for entry in batch.entries)
    rows, columns = (wanted, self._n_words) if self.shard.is_last else (batch.n_tokens, self._width)
    return self._computed(batch, lambda batch: self._run(batch, rows, columns))

  def hidden_states(self, batch: Batch) -> npt.NDArray[np.float32]:
    return self._computed(batch, lambda batch: self._run(batch, batch.n_tokens, self._width, embeds=True))

  def _run(self, batch: Batch, rows: int, columns: int, embeds: bool = False) -> npt.NDArray[np.float32]:
    """What comes out is (rows, columns)."""
    n = batch.n_tokens
    given: npt.NDArray[Any]
    if self._takes_tokens:
      given = batch.token_ids.astype(np.int32)
    elif self._embedding is not None:
      given = self._embedding(batch.token_ids)
    else:
      assert batch.hidden is not None
      given = batch.hidden.astype(np.float32, copy=False)
    out_at = SIGNAL_BYTES + whole_blocks(given.nbytes, _LINE)
    memory = self._device.memory
    memory.grow(out_at + 4 * rows * columns)
    memory.view(SIGNAL_BYTES, given.nbytes)[:] = np.ascontiguousarray(given).view(np.uint8).reshape(-1)
    entries = msgspec.to_builtins(batch.entries)
    self._torn |= {entry.sequence for entry in batch.entries}
    self._device.signals.abort(False)  # of a step that ended before it was told to
    expected = [self._expected.get(entry.sequence, 0) for entry in batch.entries]
    self._call("step", entries, expected, n, embeds, out_at, rows, columns, timeout_s=_SOON_S + n * _TOKEN_S)
    out = memory.view(out_at, 4 * rows * columns).view(np.float32).reshape(rows, columns).copy()
    if out_at + out.nbytes > _SHARED_BYTES:
      memory.give_back(_SHARED_BYTES)
    return out

  def abort(self) -> None:
    self._device.signals.abort(True)

  def length(self, sequence: int) -> int:
    return self._lengths.get(sequence, 0)

  def _check_usable(self, sequence: int) -> None:
    if sequence in self._torn:
      raise EngineError("a step of this sequence failed: it has to be cut back or dropped first")

  def _commit(self, entries: tuple[BatchEntry, ...]) -> None:
    for entry in entries:
      self._lengths[entry.sequence] = self.length(entry.sequence) + entry.n_tokens
      self._torn.discard(entry.sequence)

  def expect(self, sequence: int, tokens: int) -> None:
    self._expected[sequence] = tokens

  def drop(self, sequence: int) -> None:
    self._expected.pop(sequence, None)
    known = self._lengths.pop(sequence, None) is not None or sequence in self._torn
    self._torn.discard(sequence)
    if known:
      self._call("drop", sequence)

  def truncate(self, sequence: int, length: int) -> None:
    if length >= self.length(sequence) and sequence not in self._torn:
      return
    length = min(length, self.length(sequence))
    self._call("truncate", sequence, length)
    self._torn.discard(sequence)
    if length:
      self._lengths[sequence] = length
    else:
      self._lengths.pop(sequence, None)

  def _copy(self, source: int, target: int, length: int) -> None:
    if source in self._torn:
      raise CacheReuseError("a step of this sequence failed")
    self._call("copy", source, target, length, self.length(source), self._expected.get(target, 0))
    self._lengths[target] = length

  def buffers(self) -> BufferSizes:
    """What the library says that it has taken for this stage. Raises `EngineError`."""
    return BufferSizes(**self._call("buffers"))

  def close(self) -> None:
    try:
      self._call("close")
    except EngineError:  # there is nothing left of it
      return
