"""The process that studies a stage: it loads a few of its layers, in which every kind of matrix occurs, and computes with them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from exo.child_process import give_way, serve
from exo.inference.exactness import Exactness
from exo.inference.kv_type import KvType
from exo.inference.llama_cpp.binding import load_library
from exo.inference.llama_cpp.exactness_study import CALL_ROWS, TOKENS, ExactnessStudy
from exo.inference.llama_cpp.llama_model import LastWords, LlamaContext
from exo.inference.llama_cpp.stage_model import open_stage
from exo.inference.shard import Shard


def study(path: str, shards: Sequence[tuple[str, int, int, int]], threads: int,
          kv: tuple[str, str, bool]) -> tuple[int, int, bool, int, bool]:
  """What holds for all of these parts of a model, as the fields of `Exactness`. Raises as `open_stage` and `LlamaContext` do."""
  library = load_library(Path(sys.argv[-1]))
  words = LastWords(library)
  library.llama_backend_init()
  of = Exactness.of_all([_of_shard(library, words, path, Shard(*shard), threads, KvType(*kv)) for shard in shards])
  return of.decode_rows, of.prompt_multiple, of.joined, of.draft_rows, of.as_prompt


def _of_shard(library: object, words: LastWords, path: str, shard: Shard, threads: int, kv: KvType) -> Exactness:
  model, cut = open_stage(library, words, Path(path), shard, lambda _: None)
  random = np.random.default_rng(1)
  given = random.standard_normal((TOKENS, model.width)).astype(np.float32)
  if cut.takes_tokens:
    given = random.integers(0, model.n_words, TOKENS).astype(np.int32)

  def make(length: int, count: int) -> LlamaContext:
    return LlamaContext(model, length, count, CALL_ROWS, threads, kv, cut.out, cut.feed)

  try:
    return ExactnessStudy(make, given, cut.positions).run()
  finally:
    model.close()


def main() -> None:
  give_way()
  serve({"study": study}, 1)
