"""What all engines do alike with a step: refuse what does not fit, tell of failures in one way, note what is through."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from exo.errors import CacheReuseError, EngineError, OutOfMemoryError
from exo.inference.engine import Batch, BatchEntry, StageMemory, StageModel
from exo.inference.shard import Shard

Rows = TypeVar("Rows", bound=npt.NDArray[Any])

_NO_MEMORY = re.compile(
    r"bad.?alloc|(?:failed|unable|cannot) to? ?alloc|out of memory|insufficient memory", re.IGNORECASE
)


class StageBase(StageModel):
  """A stage whose engine says how many tokens it keeps of each sequence; where and as what it keeps them is its own affair.

  `library` is what an engine's errors call it. A subclass calls `__init__` once it knows its `memory`.
  """
  library: ClassVar[str]

  def __init__(self, shard: Shard, memory: StageMemory, hidden_size: int, n_words: int) -> None:
    """`n_words` is how many rows the embedding has: the ids of tokens lie below it."""
    self.shard, self._memory, self._hidden_size, self._n_words = shard, memory, hidden_size, n_words

  @property
  def memory(self) -> StageMemory:
    return self._memory

  # of an engine

  @abstractmethod
  def length(self, sequence: int) -> int:
    """How many tokens the cache holds of a sequence, those of the last whole step included; 0 where it is unknown."""

  def _check_usable(self, sequence: int) -> None:
    """Raises `EngineError` for a sequence that cannot be continued after a step that raised. Changes nothing."""

  def _commit(self, entries: tuple[BatchEntry, ...]) -> None:
    """The step is through: `length` tells of its tokens from now on."""

  def _give_up(self, entries: tuple[BatchEntry, ...]) -> None:
    """The step has raised, before or within `_commit`."""

  @abstractmethod
  def _copy(self, source: int, target: int, length: int) -> None:
    """As `copy`, of a source that holds so many tokens."""

  # of all

  def _computed(self, batch: Batch, run: Callable[[Batch], Rows]) -> Rows:
    """What `run` makes of a batch that fits. What it has written beyond a sequence's length is nobody's until it is through."""
    self._check(batch)
    try:
      out = run(batch)
      self._commit(batch.entries)
    except BaseException as error:
      self._give_up(batch.entries)
      if isinstance(error, Exception):
        raise engine_error(self.library, error) from error
      raise
    return out

  def _check(self, batch: Batch) -> None:
    """Refuse what cannot be computed, before anything has changed. Raises `EngineError`."""
    check_inputs(batch, self.shard.is_first, self._hidden_size, self._n_words)
    for entry in batch.entries:
      self._check_usable(entry.sequence)
      held = self.length(entry.sequence)
      if entry.position != held:
        raise EngineError(f"entry at position {entry.position} of a sequence whose cache holds {held} tokens")
      near = 0 if entry.far else self._memory.near_context
      if entry.position + entry.n_tokens > (most := near or self._memory.max_context):
        raise EngineError(f"a sequence is longer than {most} tokens")

  def copy(self, source: int, target: int, length: int) -> None:
    kept = self.length(source)
    if kept < max(1, length):  # nothing is known of one that holds nothing
      raise CacheReuseError(f"{kept} tokens are kept where {length} are wanted")
    self._copy(source, target, length)


def check_inputs(batch: Batch, is_first: bool, hidden_size: int, n_words: int) -> None:
  """That a stage can compute with these ids or hidden states.

  The engines' libraries would read whatever lies beside a table, or spread one row over all. Raises `EngineError`.
  """
  ids, hidden = batch.token_ids, batch.hidden
  if len(ids) != batch.n_tokens:
    raise EngineError(f"{len(ids)} token ids came for entries of {batch.n_tokens} tokens")
  if is_first:
    # as numbers without a sign, negative ones are the greatest: one look at each id
    if (greatest := int(ids.view(np.uint32).max())) >= n_words:
      raise EngineError(f"token id {np.uint32(greatest).astype(np.int32)} is not from 0 to {n_words - 1}")
  elif hidden is None:
    raise EngineError("the hidden states of the stage before are missing")
  elif hidden.shape != (len(ids), hidden_size):
    raise EngineError(f"hidden states have the shape {hidden.shape}, not ({len(ids)}, {hidden_size})")


def engine_error(library: str, error: Exception) -> EngineError:
  """What a library raised in a step, in this project's words; `OutOfMemoryError` where it says so in any way."""
  if isinstance(error, EngineError):
    return error
  if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
    return OutOfMemoryError(f"this node has no memory left for the request ({library}: {error})")
  return EngineError(f"{library}: {type(error).__name__}: {error}")
