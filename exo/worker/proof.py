"""Whether an engine still computes: a model of its own, made here of a formula, against the same reckoned by numpy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exo.errors import EngineError, ModelFilesError
from exo.inference.engine import Batch, BatchEntry, InferenceEngine, LoadOptions, LogitsOf
from exo.inference.shard import Shard
from exo.inference.tokenizer import Tokenizer
from exo.inference.weights.checkpoint import EMBEDDING, Checkpoint
from exo.inference.weights.tensor import StoredTensor
from exo.worker.proof_file import gguf_of

Floats = npt.NDArray[np.float64]
# sizes of which several are the same: so the tinygrad engine has fewer kernels to compile
_HIDDEN, _WIDE, _HEADS, _KV_HEADS, _HEAD_DIM, _WORDS, _THETA, _EPS = 64, 64, 2, 1, 32, 128, 10000.0, 1e-5
_LAYER = "model.layers.0."
_NORMS = (f"{_LAYER}input_layernorm.weight", f"{_LAYER}post_attention_layernorm.weight", "model.norm.weight")
_MATRICES = {
    EMBEDDING: (_WORDS, _HIDDEN),
    **{f"{_LAYER}self_attn.{name}_proj.weight": (_HIDDEN, _HIDDEN) for name in "qo"},
    **{f"{_LAYER}self_attn.{name}_proj.weight": (_KV_HEADS * _HEAD_DIM, _HIDDEN) for name in "kv"},
    **{f"{_LAYER}mlp.{name}_proj.weight": (_WIDE, _HIDDEN) for name in ("gate", "up")},
    f"{_LAYER}mlp.down_proj.weight": (_HIDDEN, _WIDE),
}  # yapf: disable
_TOKENS = (11, 47, 30, 8, 52, 19)  # the last of them in a step of its own
# of the norm, by what the engine makes of floats: what rounding them costs here is a third of it
_MAX_ERROR = {"4": 0.4}
_MAX_ERROR_ELSE = 0.05


class ProofCheckpoint(Checkpoint):
  """A Llama of one layer, in memory. It has no tokenizer."""
  def __init__(self) -> None:
    self.path = Path("proof")

  @property
  def hf_config(self) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": _HIDDEN, "num_hidden_layers": 1, "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS, "head_dim": _HEAD_DIM, "intermediate_size": _WIDE, "vocab_size": _WORDS,
        "rms_norm_eps": _EPS, "max_position_embeddings": 64, "rope_theta": _THETA, "tie_word_embeddings": True,
        "hidden_act": "silu"
    }

  @cached_property
  def values(self) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor: numbers without a pattern, of the size that a trained model's have."""
    made = {}
    for i, (name, shape) in enumerate(_MATRICES.items()):
      wave = np.sin(np.arange(shape[0] * shape[1], dtype=np.float64)**1.5 + i).reshape(shape)
      made[name] = (wave * np.sqrt(2 / shape[1])).astype(np.float32)
    for i, name in enumerate(_NORMS):
      made[name] = (1 + 0.2 * np.sin(np.arange(_HIDDEN, dtype=np.float64) + i)).astype(np.float32)
    return made

  def names(self) -> Iterable[str]:
    return self.values.keys()

  def tensor_bytes(self, name: str) -> int:
    return self.tensor(name).n_bytes

  def tensor(self, name: str) -> StoredTensor:
    if name not in self.values:
      raise ModelFilesError(f"the proof's model has no tensor {name}")
    value = self.values[name]
    return StoredTensor(name, value.shape, "F32", value.view(np.uint8))

  def tokenizer(self) -> Tokenizer:
    raise ModelFilesError("the proof's model has no tokenizer")

  def close(self) -> None:
    pass

  def logits(self, token_ids: Iterable[int]) -> Floats:
    """What an engine should give for these tokens, (tokens, words), reckoned by numpy in float64."""
    w = {name: value.astype(np.float64) for name, value in self.values.items()}
    x = w[EMBEDDING][list(token_ids)]
    n, normed = len(x), _norm(x, w[_NORMS[0]])
    q, k, v = ((normed @ w[f"{_LAYER}self_attn.{name}_proj.weight"].T).reshape(n, -1, _HEAD_DIM) for name in "qkv")
    scores = np.einsum("ihd,jd->hij", _rotated(q), _rotated(k)[:, 0]) / np.sqrt(_HEAD_DIM)
    weights = np.exp(np.where(np.tri(n, dtype=bool), scores, -np.inf))
    weights /= weights.sum(axis=-1, keepdims=True)
    attended = np.einsum("hij,jd->ihd", weights, v[:, 0]).reshape(n, _HIDDEN)
    x = x + attended @ w[f"{_LAYER}self_attn.o_proj.weight"].T
    normed = _norm(x, w[_NORMS[1]])
    gate, up = (normed @ w[f"{_LAYER}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
    x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{_LAYER}mlp.down_proj.weight"].T
    return np.asarray(_norm(x, w[_NORMS[2]]) @ w[EMBEDDING].T)


def _norm(x: Floats, weight: Floats) -> Floats:
  return np.asarray(x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + _EPS) * weight)


def _rotated(x: Floats) -> Floats:
  """(tokens, heads, dim), by the angle of each token's position."""
  half = x.shape[-1] // 2
  angles = np.outer(np.arange(len(x)), _THETA**(-np.arange(half) / half))[:, None]
  a, b = x[..., :half], x[..., half:]
  return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], axis=-1)


@contextmanager
def _in_form_for(engine: InferenceEngine, proof: ProofCheckpoint) -> Iterator[Checkpoint]:
  """The proof's model as the engine can read it."""
  if not engine.reads_files:
    yield proof
    return
  with tempfile.TemporaryDirectory(prefix="exo-proof-") as folder:
    checkpoint = gguf_of(proof.values, proof.hf_config, Path(folder) / "proof.gguf")
    try:
      yield checkpoint
    finally:
      checkpoint.close()


def prove(engine: InferenceEngine, how: LoadOptions) -> None:
  """Load the proof's model, compute a few tokens, and compare. On the device thread; a moment's work, and no model's
  files are read, though one may be written. `how` is what the worker loads its models with, sizes aside.

  Raises `EngineError` with what is wrong, or whatever the engine raises.
  """
  proof = ProofCheckpoint()
  quantize = how.quantize
  options = replace(how, memory_bytes=2**28, kv_memory_bytes=None, max_sequences=2, max_context=64)
  with _in_form_for(engine, proof) as checkpoint:
    model = engine.load(Shard("proof", 0, 0, 1), checkpoint, options, lambda _: None)
    try:
      found, position = [], 0
      for ids in (_TOKENS[:-1], _TOKENS[-1:]):
        entry = BatchEntry(1, position, len(ids), LogitsOf.ALL)
        found.append(np.array(model.step(Batch((entry, ), np.array(ids, np.int32))), np.float64))
        position += len(ids)
      model.drop(1)
    finally:
      model.close()
  logits = np.concatenate(found)
  if logits.shape != (len(_TOKENS), _WORDS):
    raise EngineError(f"the {engine.name} engine gives logits of shape {logits.shape} where {_WORDS} words are known")
  if not np.isfinite(logits).all():
    raise EngineError(f"the {engine.name} engine computes numbers that are none (NaN or infinite)")
  if not engine.reads_weights:
    return
  expected = proof.logits(_TOKENS)
  error = float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))
  if error > _MAX_ERROR.get(quantize or "", _MAX_ERROR_ELSE):
    raise EngineError(f"the {engine.name} engine computes wrong numbers: {error:.0%} off in a model whose are known")
