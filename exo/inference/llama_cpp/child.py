"""The process in which llama.cpp computes for one device. What ends it is the error of a load or a step, and its node starts another."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from exo.child_process import serve
from exo.errors import EngineError
from exo.inference.engine import BatchEntry
from exo.inference.exactness import Exactness
from exo.inference.kv_type import KvType
from exo.inference.llama_cpp.binding import load_library
from exo.inference.llama_cpp.cache_plan import CacheRoom
from exo.inference.llama_cpp.child_stage import ChildStage
from exo.inference.llama_cpp.large_pages import LargePages
from exo.inference.llama_cpp.llama_model import LastWords
from exo.inference.llama_cpp.opening import Opening, SaidOpening
from exo.inference.llama_cpp.signals import SIGNAL_BYTES, Signals
from exo.inference.shard import Shard
from exo.shared_memory import SharedMemory


class Child:
  """Its methods are the calls of `stage.py`; stages have numbers, which their node gives them."""
  def __init__(self, library: Path, memory: SharedMemory) -> None:
    self._library: Any = load_library(library)
    self._words = LastWords(self._library)
    self._library.llama_backend_init()
    self._memory, self._signals = memory, Signals(memory)
    self._pages = LargePages()
    self._stages: dict[int, ChildStage] = {}

  def load(
      self, number: int, path: str, shard: tuple[str, int, int, int], threads: int, kv: tuple[str, str, bool],
      room: tuple[int, int, int, int, int, int, bool, int | None], weight_bytes: int, weights: SaidOpening
  ) -> tuple[int, int, bool, int, tuple[int, ...]]:
    """(width, words, whether sequences can be shortened, bytes of weights, the fields of the `CachePlan`)"""
    stage = self._stages[number] = ChildStage(
        self._library, self._words, Path(path), Shard(*shard), threads, KvType(*kv), CacheRoom(*room), weight_bytes,
        Opening.of(*weights), self._signals
    )
    self._pages.want()
    return stage.width, stage.n_words, stage.can_shorten, stage.weight_bytes, astuple(stage.plan)

  def buffers(self, number: int) -> dict[str, int]:
    """What the library has taken for a stage, by the fields of `BufferSizes`."""
    return asdict(self._stages[number].buffers)

  def step(
      self, number: int, entries: list[Any], expected: list[int], n_tokens: int, embeds: bool, out_at: int,
      out_rows: int, out_columns: int
  ) -> None:
    """What goes in lies in the shared memory behind the signals, what comes out goes to `out_at`: hidden states after the final norm where
    it `embeds`. `expected`: tokens that each entry's sequence will hold, 0 where that is not known."""
    stage, memory, batch = self._stages[number], self._memory, msgspec.convert(entries, list[BatchEntry])
    stage.expect({entry.sequence: tokens for entry, tokens in zip(batch, expected, strict=True)})
    given: npt.NDArray[Any] = memory.view(SIGNAL_BYTES, 4 * n_tokens).view(np.int32)
    if not stage.takes_tokens:
      given = memory.view(SIGNAL_BYTES, 4 * n_tokens * stage.width).view(np.float32).reshape(n_tokens, stage.width)
    out = memory.view(out_at, 4 * out_rows * out_columns).view(np.float32).reshape(out_rows, out_columns)
    compute = stage.hidden_states if embeds else stage.step
    with self._pages.computing():
      compute(batch, given, out)

  def learn(self, number: int, *exactness: Any) -> None:
    self._stages[number].exactness = Exactness(*exactness)

  def drop(self, number: int, sequence: int) -> None:
    self._stages[number].drop(sequence)

  def truncate(self, number: int, sequence: int, length: int) -> None:
    self._stages[number].truncate(sequence, length)

  def copy(self, number: int, source: int, target: int, length: int, held: int, expected: int) -> None:
    self._stages[number].expect({target: expected})
    self._stages[number].copy(source, target, length, held)

  def close(self, number: int) -> None:
    stage = self._stages.pop(number, None)
    if stage is not None:
      stage.close()


def main() -> None:
  library, descriptor = sys.argv[-2:]
  child: list[Child] = []

  def start() -> int:
    """Load the library: what is wrong with it is the answer."""
    child.append(Child(Path(library), SharedMemory(int(descriptor))))
    return os.getpid()

  def named(name: str) -> Any:
    def call(*arguments: Any) -> Any:
      if not child:
        raise EngineError("llama.cpp is not loaded")
      return getattr(child[0], name)(*arguments)

    return call

  serve({"start": start}
        | {name: named(name)
           for name in ("load", "buffers", "step", "learn", "drop", "truncate", "copy", "close")}, 1)
