"""One side of the engine alone, as a process that stays loaded:
`python -m scripts.real_sizes.engine_child exo|plain FILE THREADS PROMPT DECODED`.

For each line on its standard input, with the ids of a prompt as JSON, it writes the seconds that the prompt and the decoding after it took.
`plain` is llama.cpp's C interface and nothing else, with the settings that exo has.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf
from exo.inference.engines import load_engine
from exo.inference.kv_type import KvType
from exo.inference.llama_cpp.binding import LlamaBatch, load_library
from exo.inference.llama_cpp.library_choice import chosen_library
from exo.inference.llama_cpp.llama_model import TYPES, LastWords
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import open_checkpoint
from exo.inference.weights.gguf_file import GgufFile

_ROWS = 512  # of a call, at most
_MEMORY = 2**34
Ids = npt.NDArray[np.int32]
Step = Callable[[Ids, int], int]  # (ids, position) -> the likeliest next one


def exo(path: Path, threads: int, length: int) -> tuple[Step, Callable[[], None]]:
  checkpoint = open_checkpoint(path)
  n = checkpoint.config.n_layers
  options = LoadOptions(_MEMORY, threads, max_sequences=1, max_context=length)
  model = load_engine("llama_cpp").load(Shard("m", 0, n - 1, n), checkpoint, options, lambda _: None)

  def step(ids: Ids, position: int) -> int:
    return int(model.step(Batch((BatchEntry(0, position, len(ids), LogitsOf.LAST), ), ids))[-1].argmax())

  return step, lambda: model.drop(0)


def plain(path: Path, threads: int, length: int) -> tuple[Step, Callable[[], None]]:
  library = load_library(chosen_library().file.path)
  words = LastWords(library)
  library.llama_backend_init()
  params = library.llama_model_default_params()
  params.n_gpu_layers = 0
  model = library.llama_model_load_from_file(os.fsencode(path), params)
  checkpoint = open_checkpoint(path)
  assert model and isinstance(checkpoint, GgufFile), words.take()
  kv = KvType.choose(None, checkpoint.head_dims)
  settings = library.llama_context_default_params()
  settings.n_ctx, settings.n_batch, settings.n_ubatch = length, _ROWS, _ROWS
  settings.n_threads = settings.n_threads_batch = threads
  settings.type_k, settings.type_v, settings.flash_attn = TYPES[kv.k], TYPES[kv.v], int(kv.flash)
  context = library.llama_init_from_model(model, settings)
  assert context, words.take()
  n_words = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))

  def step(ids: Ids, position: int) -> int:
    batch = LlamaBatch(n_tokens=len(ids), token=ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)))
    if status := library.llama_decode(context, batch):
      raise RuntimeError(f"llama_decode gave {status}: {words.take()}")
    return int(np.ctypeslib.as_array(library.llama_get_logits(context), (n_words, )).argmax())

  return step, lambda: library.llama_memory_seq_rm(library.llama_get_memory(context), -1, -1, -1)


def main() -> None:
  kind, path, threads, prompt, decoded = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6])
  make: Any = {"exo": exo, "plain": plain}[kind]
  step, drop = make(path, threads, -(-(prompt + decoded) // 256) * 256)
  print("ready", flush=True)
  for line in sys.stdin:
    ids = np.array(json.loads(line), np.int32)
    started, token = time.perf_counter(), 0
    for at in range(0, prompt, _ROWS):
      token = step(ids[at:at + _ROWS], at)
    first = time.perf_counter()
    for i in range(decoded - 1):
      token = step(np.array([token], np.int32), prompt + i)
    last = time.perf_counter()
    drop()
    print(json.dumps([first - started, last - first]), flush=True)


if __name__ == "__main__":
  main()
