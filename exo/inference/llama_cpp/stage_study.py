"""The study of a stage of llama.cpp, in a process of its own that a node can end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from dataclasses import astuple

from exo.child_process import ChildProcess
from exo.errors import EngineError, ExoError
from exo.inference.engine import Study
from exo.inference.exactness import Exactness
from exo.inference.kv_type import KvType
from exo.inference.llama_cpp.exactness_study import CONTEXT, STREAMS
from exo.inference.llama_cpp.library_choice import chosen_library
from exo.inference.llama_cpp.opening import SaidOpening
from exo.inference.llama_cpp.study_plan import parts_to_study, study_key
from exo.inference.shard import Shard
from exo.inference.weights.gguf_file import GgufFile
from exo.inference.weights.parts import shard_tensors

_LONGEST_S, _POLL_S = 600.0, 0.2
_BESIDE_BYTES = 250 << 20  # what lies between operators, results, the library


def stage_study(
    checkpoint: GgufFile, shard: Shard, kv: KvType, threads: int, weights: SaidOpening, environment: Mapping[str, str]
) -> Study:
  """`weights` are the arguments of `Opening.of`; `environment` is that of the process that computes the stage."""
  tensors, library = checkpoint.header.tensors, chosen_library().file.path
  parts = parts_to_study(tensors, shard)
  n_bytes = sum(checkpoint.tensor_bytes(name) for part in parts for name in shard_tensors(checkpoint, part))
  config, layers = checkpoint.config, sum(part.layer_count for part in parts)
  cache_bytes = (STREAMS + 1) * CONTEXT * layers * 2 * config.n_kv_heads * config.head_dim * kv.element_bytes

  def run(is_unwanted: Callable[[], bool]) -> Exactness | None:
    child = ChildProcess("exo.inference.llama_cpp.study_child", "studying llama.cpp", (str(library), ), environment)
    give_up = time.monotonic() + _LONGEST_S
    try:
      answer = child.call(
          "study", str(checkpoint.path), [astuple(part) for part in parts], threads, astuple(kv), weights
      )
      while not wait([answer], _POLL_S).done:
        if is_unwanted():
          answer.cancel()  # nobody waits for the news that the process is gone
          return None
        if time.monotonic() > give_up:
          raise EngineError(f"its study did not end within {_LONGEST_S:.0f} s")
      return Exactness(*answer.result())
    except EngineError:
      raise
    except ExoError as error:
      raise EngineError(error.message) from error
    finally:
      child.kill()

  key = study_key(checkpoint.header, shard, (astuple(kv), threads, weights[0], weights[3]), library)
  return Study(key, 2 * n_bytes + int(cache_bytes) + _BESIDE_BYTES, run)
