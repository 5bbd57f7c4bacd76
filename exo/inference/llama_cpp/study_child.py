"""The process that studies a stage: it loads a few of its layers, in which every kind of matrix occurs, and computes with them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from exo.child_process import give_way, serve
from exo.inference.exactness import Exactness
from exo.inference.kv_type import KvType
from exo.inference.llama_cpp.binding import load_library
from exo.inference.llama_cpp.exactness_study import CALL_ROWS, STREAMS, TOKENS, ExactnessStudy
from exo.inference.llama_cpp.llama_model import LastWords, LlamaContext, LlamaModel
from exo.inference.llama_cpp.opening import Opening, SaidOpening, read_cut
from exo.inference.llama_cpp.stage_cut import StageCut
from exo.inference.shard import Shard


def study(
    path: str, shards: Sequence[tuple[str, int, int, int]], threads: int, kv: tuple[str, str, bool],
    weights: SaidOpening
) -> tuple[int, int, bool, int, bool]:
  """What holds for all of these parts of a model, as the fields of `Exactness`. Raises as `read_cut`, `Opening.open` and `LlamaContext` do."""
  library = load_library(Path(sys.argv[-1]))
  words = LastWords(library)
  library.llama_backend_init()
  opening = Opening.of(*weights)
  found = [_of_shard(library, words, Path(path), Shard(*shard), threads, KvType(*kv), opening) for shard in shards]
  of = Exactness.of_all(found)
  return of.decode_rows, of.prompt_multiple, of.joined, of.draft_rows, of.as_prompt


def _of_shard(
    library: object, words: LastWords, path: Path, shard: Shard, threads: int, kv: KvType, opening: Opening
) -> Exactness:
  header, cut = read_cut(path, shard)
  with ExitStack() as stack:
    file = stack.enter_context(closing(opening.open(path, header, cut)))
    model = stack.enter_context(closing(LlamaModel(library, words, file.file, lambda _: None, plain=opening.plain)))
    file.let_go()
    return _of_model(model, cut, threads, kv)


def _of_model(model: LlamaModel, cut: StageCut, threads: int, kv: KvType) -> Exactness:
  random = np.random.default_rng(1)
  given = random.standard_normal((TOKENS, model.width)).astype(np.float32)
  if cut.takes_tokens:
    given = random.integers(0, model.n_words, TOKENS).astype(np.int32)

  def make(length: int, count: int) -> LlamaContext:
    return LlamaContext(
        model, length, count, CALL_ROWS, threads, kv, cut.out, cut.feed, n_outputs=0 if cut.out else STREAMS
    )

  return ExactnessStudy(make, given, cut.positions).run()


def main() -> None:
  give_way()
  serve({"study": study}, 1)
