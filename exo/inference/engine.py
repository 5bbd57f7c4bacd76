"""What every inference engine does: load a shard and run batches of entries through it.

All methods block and run on the one thread that owns the device (`worker/device_thread.py`); nothing here is called from
the event loop, and no two calls into one engine overlap.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from exo.errors import EngineError, UnsupportedModelError
from exo.inference.exactness import CAREFUL, Exactness
from exo.inference.shard import Shard

if TYPE_CHECKING:
  from exo.inference.weights.checkpoint import Checkpoint

TokenIds = npt.NDArray[np.int32]
Activation = npt.NDArray[Any]  # (tokens, hidden size), in the dtype that the engine computes in
Logits = npt.NDArray[np.float32]  # (rows, vocabulary)
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]  # checked where it comes from another node


class LogitsOf(IntEnum):
  """Which of an entry's positions the last stage computes logits for."""
  NONE = 0
  LAST = 1
  ALL = 2
  HIDDEN = 3  # none: the final hidden states of all tokens instead


class BatchEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
  """`n_tokens` consecutive tokens of one sequence, the first of them at `position`.

  `position` equals the number of tokens that the sequence's KV cache holds at this stage. `far` is the same for all entries of
  a sequence: it may become longer than `StageMemory.near_context`. So is `exact`: its numbers must be those that it has alone, as
  `Exactness` says; others may be computed in any company.
  """
  sequence: Count
  position: Count
  n_tokens: Annotated[int, msgspec.Meta(ge=1)]
  logits: LogitsOf
  far: bool = False
  exact: bool = True

  @property
  def logit_rows(self) -> int:
    return (0, 1, self.n_tokens, 0)[self.logits]


class Batch(msgspec.Struct, frozen=True):
  """The entries of one step, their tokens laid end to end. A sequence appears at most once.

  `token_ids` has shape (tokens,) and is there at every stage; `hidden` has shape (tokens, hidden size) and is what the
  stage before gave, None for the first stage.
  """
  entries: tuple[BatchEntry, ...]
  token_ids: TokenIds
  hidden: Activation | None = None

  @property
  def n_tokens(self) -> int:
    return sum(entry.n_tokens for entry in self.entries)

  def only(self, wanted: Callable[[BatchEntry], bool]) -> Batch:
    """The batch of some of its entries."""
    kept = [wanted(entry) for entry in self.entries]
    rows = np.repeat(kept, [entry.n_tokens for entry in self.entries])
    entries = tuple(entry for entry, keep in zip(self.entries, kept, strict=True) if keep)
    return Batch(entries, self.token_ids[rows], None if self.hidden is None else self.hidden[rows])


@dataclass(frozen=True, slots=True)
class StageMemory:
  """What a loaded shard occupies and how much more it can keep; `kv_bytes_per_token` is what a token takes at most.

  `max_drafting` is how many sequences of one step may have drafts verified: 1 where an entry of several tokens is a run
  of its own, more where such entries are computed together, 0 where caches cannot always be shortened afterwards.
  `near_context`: the model computes sequences that stay within so many tokens otherwise than longer ones; 0 where it does not.
  `working_bytes` are taken beside weights and tokens: states that do not grow with them, and memory between operators where that is more
  than the plan reckons with. `kv_at_once`: memory for all tokens of KV is taken when the shard is loaded, not when they are written.
  `indivisible`: layers keep a state instead of every token, so that a cache is copied whole or not at all, and never shortened.
  """
  weight_bytes: int
  kv_bytes_per_token: int
  max_kv_tokens: int
  max_sequences: int
  max_context: int
  max_drafting: int = 1
  near_context: int = 0
  kv_at_once: bool = False
  working_bytes: int = 0
  indivisible: bool = False


@dataclass(frozen=True, slots=True)
class LoadOptions:
  """`memory_bytes` bounds weights and KV together, `free_bytes`, where given, what of that is taken while the shard is loaded: the rest is
  there once other models' caches have given it up. `kv_memory_bytes` and `max_kv_tokens`, where given, bound the KV alone. `quantize` is what
  `--quantize` says, which each engine reads with `choose_quantize`, and `kv_type` what `--kv-type` says, for those that know `KvType`.
  `weights` is what `--weights` says, for those that know `WeightMode`, and `made_files` the folder for files that an engine makes of a
  model's (`MadeFiles`), None where it may make none.

  `library_debug` is how much the engine's library prints of its own work (TINYGRAD_DEBUG); 0 is nothing. `device` is the short
  name of the one to use, as the engine's probe names it; "" leaves it to the engine.
  """
  memory_bytes: int
  threads: int
  kv_memory_bytes: int | None = None
  free_bytes: int | None = None
  max_sequences: int = 64
  max_context: int | None = None
  max_kv_tokens: int | None = None
  quantize: str | None = None
  kv_type: str | None = None
  weights: str | None = None
  made_files: Path | None = None
  library_debug: int = 0
  device: str = ""


@dataclass(frozen=True, slots=True)
class Study:
  """Finds out about a stage's exactness in a process of its own, which takes `n_bytes`. `key` is the same for stages that compute alike.

  `run` blocks for up to minutes, in any thread, and ends with None soon after `is_unwanted()` says so. Raises `EngineError`.
  """
  key: str
  n_bytes: int
  run: Callable[[Callable[[], bool]], Exactness | None]


class StageModel(ABC):
  """A loaded shard with the KV cache of its sequences.

  A method that raises leaves every sequence that it was not asked for untouched. Of a step's own sequences the first
  `position` tokens, as their entries say, are as they were: `truncate(sequence, position)` brings one back exactly to
  what it was, or raises `CacheReuseError` where the engine cannot promise that; then it is dropped and computed anew.
  Until one of the two has happened a step may refuse the sequence, and a new one may be known or unknown. `truncate`
  and `copy` that raise have changed nothing. Memory that was taken for what failed is given back when the sequence is
  dropped or its step computed again.
  """
  shard: Shard

  @property
  @abstractmethod
  def memory(self) -> StageMemory:
    """Constant after loading."""

  @property
  def exactness(self) -> Exactness:
    """What is known now of calls that give the same bits; `learn` may tell more of them."""
    return CAREFUL

  def to_study(self) -> Study | None:
    """How more can be found out about that; None where nothing is left to be found out."""
    return None

  def learn(self, exactness: Exactness) -> None:
    """What came of `to_study`, now or when such a stage was loaded before. Raises `EngineError`."""
    raise EngineError("there is nothing to learn here")

  def expect(self, sequence: int, tokens: int) -> None:  # noqa: B027 - optional
    """A sequence will hold about so many tokens, its prompt and some of its answer. Optional: memory may be taken for it at once."""

  @abstractmethod
  def step(self, batch: Batch) -> npt.NDArray[Any]:
    """Append the entries' keys and values to the cache and return what follows.

    Not the last stage: hidden states (tokens, hidden size). The last: logits (rows, vocabulary) in float32, the wanted
    rows of each entry in order; possibly zero rows. Hidden states are the caller's; logits are valid until the next
    call. A sequence seen for the first time starts an empty cache.

    Raises `EngineError`: `OutOfMemoryError` where an allocation failed, which is the affair of the entries that wanted
    it and of nobody else. What the class says of methods that raise holds for whatever is raised.
    """

  def hidden_states(self, batch: Batch) -> npt.NDArray[np.float32]:
    """On the last stage, as `step`, but what the head would see: hidden states after the final norm, (tokens, hidden
    size) in float32, for embeddings. Optional: raises `UnsupportedModelError` where an engine does not give them, else
    as `step`.
    """
    raise UnsupportedModelError("the engine of this model's last stage gives no embeddings")

  def abort(self) -> None:  # noqa: B027 - whoever cannot need not
    """End the step that runs, if one does: it raises `StepAbortedError` as soon as it can. May be called by any thread at any time, unlike all
    else. Optional: an engine that cannot end a step does nothing.
    """

  @abstractmethod
  def drop(self, sequence: int) -> None:
    """Forget a sequence's cache, whatever state it is in, and give its memory back. Unknown sequences are ignored."""

  @abstractmethod
  def truncate(self, sequence: int, length: int) -> None:
    """Forget what the cache holds beyond `length` tokens. Never lengthens.

    Raises `CacheReuseError` where this cache cannot be shortened so far; it is then unchanged. Not shortening at all
    always works, but after a step that raised (see above); to nothing always works. Unknown sequences are ignored.
    """

  @abstractmethod
  def copy(self, source: int, target: int, length: int) -> None:
    """Let `target`, a new sequence, begin with the first `length` tokens of `source`'s cache; they share nothing after.

    Raises `CacheReuseError` as `truncate` does, also for a source that is unknown, and `EngineError` where there is no
    room; `target` is then unknown.
    """

  @abstractmethod
  def close(self) -> None:
    """Give all memory back. No method may be called afterwards."""


@dataclass(frozen=True, slots=True)
class InferenceEngine:
  """Loads shards; one instance a process.

  `load` reads the shard's own weights, calls its last argument with fractions 0..1, and gives the shard ready to step.
  It raises `UnsupportedModelError` for an architecture the engine cannot run, `ModelFilesError` for damaged weights.
  `reads_weights` says that its numbers are those of the checkpoint, rather than some for tests; `reads_files` that it wants the GGUF
  file itself, and no tensors.
  """
  name: str
  load: Callable[[Shard, Checkpoint, LoadOptions, Callable[[float], None]], StageModel]
  reads_weights: bool = True
  reads_files: bool = False


def gather_logit_rows(entries: tuple[BatchEntry, ...]) -> npt.NDArray[np.int64]:
  """Which of the batch's tokens the last stage needs logits for, as indices into the tokens laid end to end."""
  rows: list[int] = []
  start = 0
  for entry in entries:
    end = start + entry.n_tokens
    rows.extend(range(end - entry.logit_rows, end))
    start = end
  return np.asarray(rows, dtype=np.int64)
