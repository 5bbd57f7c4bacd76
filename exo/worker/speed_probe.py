"""How fast an engine is on this device: measured with a small model of a real one's shape, in a process of its own.

An engine that is being measured may take all memory, fail in native code or never come back: that ends with its process.
Runs as `main`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from exo.child_process import give_way, serve
from exo.errors import ModelFilesError
from exo.inference.engine import Batch, BatchEntry, InferenceEngine, LoadOptions, LogitsOf
from exo.inference.engines import load_engine
from exo.inference.offer import PROMPT_TOKENS, EngineSpeed
from exo.inference.shard import Shard
from exo.inference.tokenizer import Tokenizer
from exo.inference.weights.checkpoint import EMBEDDING, Checkpoint
from exo.inference.weights.tensor import StoredTensor, row_bytes

# 49 million weights: far more than a processor's caches hold, and a few seconds' work for the slowest engine
_LAYERS, _HIDDEN, _WIDE, _HEADS, _KV_HEADS, _HEAD_DIM, _WORDS = 4, 1024, 2816, 16, 4, 64, 8192
_CHUNK, _WARM_UP, _DECODED = 256, 3, 8
_ROUNDS = 3  # the best of which counts: what else the machine does then is not the engine's doing
_ENCODING, _BLOCK_BYTES = "Q8_0", 34


class SpeedCheckpoint(Checkpoint):
  """A Llama with weights of eight bits that mean nothing. It has no tokenizer."""
  def __init__(self) -> None:
    self.path = Path("speed probe")

  @property
  def hf_config(self) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": _HIDDEN, "num_hidden_layers": _LAYERS, "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS, "head_dim": _HEAD_DIM, "intermediate_size": _WIDE, "vocab_size": _WORDS,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 1024, "rope_theta": 1e4, "tie_word_embeddings": True,
        "hidden_act": "silu"
    }  # yapf: disable

  @cached_property
  def _shapes(self) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (_WORDS, _HIDDEN), "model.norm.weight": (_HIDDEN, )}
    for layer in (f"model.layers.{i}." for i in range(_LAYERS)):
      shapes |= {f"{layer}{norm}_layernorm.weight": (_HIDDEN, ) for norm in ("input", "post_attention")}
      shapes |= {f"{layer}self_attn.{part}_proj.weight": (_HEADS * _HEAD_DIM, _HIDDEN) for part in "qo"}
      shapes |= {f"{layer}self_attn.{part}_proj.weight": (_KV_HEADS * _HEAD_DIM, _HIDDEN) for part in "kv"}
      shapes |= {f"{layer}mlp.{part}_proj.weight": (_WIDE, _HIDDEN) for part in ("gate", "up")}
      shapes[f"{layer}mlp.down_proj.weight"] = (_HIDDEN, _WIDE)
    return shapes

  def names(self) -> Iterable[str]:
    return self._shapes.keys()

  def tensor_bytes(self, name: str) -> int:
    return self.tensor(name).n_bytes

  def tensor_shape(self, name: str) -> tuple[int, ...]:
    return self._shapes[name]

  def encoding(self, name: str) -> str:
    return _ENCODING if len(self._shapes[name]) > 1 else "F32"

  def tensor(self, name: str) -> StoredTensor:
    if name not in self._shapes:
      raise ModelFilesError(f"the speed probe's model has no tensor {name}")
    shape = self._shapes[name]
    if len(shape) == 1:
      return StoredTensor(name, shape, "F32", np.ones(shape, np.float32).view(np.uint8))
    rows, columns = shape
    blocks = np.random.default_rng(columns).integers(0, 256, (rows, columns // 32, _BLOCK_BYTES), np.uint8)
    blocks[..., :2] = np.array([2e-4], "<f2").view(np.uint8)  # the scale of a block
    return StoredTensor(name, shape, _ENCODING, blocks.reshape(rows, row_bytes(_ENCODING, columns)))

  def tokenizer(self) -> Tokenizer:
    raise ModelFilesError("the speed probe's model has no tokenizer")

  def close(self) -> None:
    pass


def measure(engine: InferenceEngine, threads: int, quantize: str | None, device: str = "") -> EngineSpeed:
  """With `LoadOptions` of these: a prompt and some tokens after it, as one stream. Blocks for seconds.

  Raises whatever the engine raises.
  """
  options = LoadOptions(2**31, threads, max_sequences=2, max_context=1024, quantize=quantize, device=device)
  model = engine.load(Shard("speed probe", 0, _LAYERS - 1, _LAYERS), SpeedCheckpoint(), options, lambda _: None)

  def seconds(sequence: int, position: int, steps: int, tokens: int) -> float:
    began = time.perf_counter()
    for start in range(position, position + steps * tokens, tokens):
      ids = (np.arange(start, start + tokens) * 31 % _WORDS).astype(np.int32)
      model.step(Batch((BatchEntry(sequence, start, tokens, LogitsOf.LAST), ), ids))
    return time.perf_counter() - began

  try:
    seconds(1, 0, 1, _CHUNK)  # what is compiled or packed at first use is not what is asked for
    seconds(1, _CHUNK, _WARM_UP, 1)
    model.drop(1)
    prompts, decodes = [], []
    for _ in range(_ROUNDS):
      prompts.append(seconds(2, 0, PROMPT_TOKENS // _CHUNK, _CHUNK))
      decodes.append(seconds(2, PROMPT_TOKENS, _DECODED, 1))
      model.drop(2)
  finally:
    model.close()
  return EngineSpeed(PROMPT_TOKENS / max(min(prompts), 1e-9), _DECODED / max(min(decodes), 1e-9))


def _measure(name: str, threads: int, quantize: str | None, device: str) -> tuple[float, float]:
  speed = measure(load_engine(name), threads, quantize, device)
  return speed.prompt, speed.decode


def main() -> None:
  give_way()
  serve({"measure": _measure}, 1)
