"""The mlx engine beyond the contract: references, windows, packed weights, caches, and what it says when it cannot."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exo.errors import EngineError, ModelFilesError, UnsupportedModelError
from exo.inference.engines import offered_engines, probe_engine
from exo.inference.mlx import probe as mlx_probe
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from test.support.nodes import ROOT
from test.support.stages import Stages

if not mlx_probe.probe().available:
  pytest.skip(mlx_probe.probe().missing, allow_module_level=True)

from exo.inference.mlx import library

library.load_blas()  # before MLX

import mlx.core as mx  # noqa: E402

from exo.inference.mlx import stage as mlx_stage  # noqa: E402
from exo.inference.mlx.cache import DecodeBatch, KvCache  # noqa: E402
from exo.inference.mlx.sliced_model import SlicedModel  # noqa: E402
from exo.inference.mlx.weights import Holding, holding  # noqa: E402
from exo.inference.shard import Shard  # noqa: E402
from exo.inference.weights.parts import needed_names  # noqa: E402

GOLDENS = ["llama", "llama3_rope", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3"]
# a rounded hidden state sends some tokens of the tiny mixture of experts to another expert
TOLERANCE_8 = {"qwen3_moe": 0.3}


def error(a: Any, b: Any) -> float:
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def golden(goldens: Path, name: str) -> Checkpoint:
  if not (goldens / name).is_dir():
    pytest.skip("the shared golden checkpoints are not here")
  return open_checkpoint(goldens / name)


# a split model gives the whole one's numbers


@pytest.mark.parametrize("architecture", GOLDENS)
def test_1_reference_logits_and_greedy_text(goldens: Path, architecture: str) -> None:
  opened = golden(goldens, architecture)
  prompts, expected, greedy = (np.load(opened.path / f"{name}.npy") for name in ("tokens", "logits", "greedy"))
  for cuts in ((), (2, 4)):
    stages = Stages("mlx", opened, cuts, "none")
    for row, prompt in enumerate(prompts):
      assert error(stages.step([(row, 0, prompt.tolist())]), expected[row]) < 1e-3
      stages.each("drop", row)
      assert stages.greedy(prompt.tolist(), greedy.shape[1]) == greedy[row].tolist()
  rounded = Stages("mlx", opened, (3, ), "8")
  for row, prompt in enumerate(prompts):
    assert error(rounded.step([(row, 0, prompt.tolist())]), expected[row]) < TOLERANCE_8.get(architecture, 3e-2)


@pytest.mark.parametrize("architecture", GOLDENS)
def test_1_chunks_batches_and_single_tokens_equal_one_prefill(goldens: Path, architecture: str) -> None:
  """On every kind of mask, in stages of one layer, too: each takes its masks from its own caches."""
  opened = golden(goldens, architecture)
  tokens = np.load(opened.path / "tokens.npy")[0].tolist()
  whole = Stages("mlx", opened).step([(1, 0, tokens)])
  stages = Stages("mlx", opened, (1, 2, 3, 4, 5))
  n = len(tokens)
  parts = [stages.step([(1, a, tokens[a:b])]) for a, b in ((0, 5), (5, 20), (20, 22), (22, n - 3))]
  stages.step([(2, 0, tokens[:n - 3])])
  stages.step([(3, 0, tokens[:4])])
  for at in range(n - 3, n):
    rows = stages.step([(3, at - n + 7, [tokens[at - n + 7]]), (1, at, tokens[at:at + 1]), (2, at, tokens[at:at + 1])])
    parts.append(rows[1:2])
    assert error(rows[2], rows[1]) < 1e-5
    assert error(rows[0], whole[at - n + 7]) < 1e-4
  assert error(np.concatenate(parts), whole) < 1e-4


def with_window(goldens: Path, tmp_path: Path, name: str, **changes: Any) -> Checkpoint:
  golden(goldens, name).close()
  shutil.copytree(goldens / name, tmp_path / name)
  config = json.loads((tmp_path / name / "config.json").read_text()) | changes
  (tmp_path / name / "config.json").write_text(json.dumps(config))
  return open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(("name", "changes"), [
    ("mistral", {"sliding_window": 8}),
    ("phi3", {"sliding_window": 8}),
    ("gemma2", {"sliding_window": 8}),
    (
        "qwen3", {
            "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2,
            "layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 4
        }
    ),
])
def test_windows_that_mlx_lm_ignores(goldens: Path, tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
  """The onnx engine, whose windows are an operator's, is the reference."""
  opened = with_window(goldens, tmp_path, name, **changes)
  tokens = np.load(goldens / name / "tokens.npy")[0].tolist()
  expected = Stages("onnx:none", opened).step([(1, 0, tokens)])
  unlimited = Stages("mlx", golden(goldens, name)).step([(1, 0, tokens)])
  stages = Stages("mlx", opened, (1, 3))
  parts = [stages.step([(1, a, tokens[a:b])]) for a, b in ((0, 3), (3, 14), (14, 15), (15, len(tokens)))]
  assert error(np.concatenate(parts), expected) < 1e-3 < error(unlimited, expected)
  stages.each("truncate", 1, 9)  # beyond the window: exact only where nothing was thrown away
  assert error(stages.step([(1, 9, tokens[9:])]), expected[9:]) < 1e-3


ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "longrope": {
        "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [float(i + 1) for i in range(8)],
        "original_max_position_embeddings": 128
    },
}


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_rotary_scalings_are_those_of_the_other_engines(goldens: Path, tmp_path: Path, name: str, kind: str) -> None:
  opened = with_window(goldens, tmp_path, name, rope_parameters=None, rope_scaling=ROPES[kind], rope_theta=10000.0)
  tokens = np.load(goldens / name / "tokens.npy")[0].tolist()
  expected = Stages("onnx:none", opened).step([(1, 0, tokens)])
  assert error(Stages("mlx", opened, (2, )).step([(1, 0, tokens)]), expected) < 1e-3


# weights


def hold_packed(monkeypatch: pytest.MonkeyPatch, dtype: Any = mx.float32) -> None:
  monkeypatch.setattr(mlx_stage, "holding", lambda *_: Holding(dtype, True))


@pytest.mark.parametrize("bits", ["8", "4"])
@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma3_text"])
def test_rounded_weights_give_the_same_numbers_packed_and_expanded(
    goldens: Path, monkeypatch: pytest.MonkeyPatch, name: str, bits: str
) -> None:
  opened = golden(goldens, name)
  tokens = np.load(opened.path / "tokens.npy")[0].tolist()
  expanded = Stages("mlx", opened, (2, ), bits)
  expected = expanded.step([(1, 0, tokens)])
  hold_packed(monkeypatch)
  packed = Stages("mlx", opened, (2, ), bits)
  assert error(packed.step([(1, 0, tokens)]), expected) < 1e-5
  for small, large in zip(packed.models, expanded.models, strict=True):
    assert small.memory.weight_bytes < 0.6 * large.memory.weight_bytes


def test_a_gguf_file_stays_quantized_where_that_is_wanted(smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
  """Q4_1 and Q8_0 as they are: the same numbers as expanded, in little more than the file's bytes (scales are float32)."""
  tokens, shard = list(range(100, 104)), Shard("m", 0, 2, 30)
  expected = Stages("mlx", smollm2, shard=shard).step([(1, 0, tokens)])
  hold_packed(monkeypatch)
  packed = Stages("mlx", smollm2, shard=shard)
  assert error(packed.step([(1, 0, tokens)]), expected) < 1e-4
  in_file = sum(smollm2.tensor_bytes(name) for name in needed_names(smollm2.names(), shard))
  assert packed.models[0].memory.weight_bytes < 1.3 * in_file


@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_blocks_become_affine_groups(encoding: str) -> None:
  """Random bytes are blocks like any others, but for their scales."""
  from exo.inference.mlx.weights import _affine
  from exo.inference.weights.tensor import BLOCKS, StoredTensor
  block, size = BLOCKS[encoding]
  rng = np.random.default_rng(3)
  raw = rng.integers(0, 256, (6, 512 // block, size), dtype=np.uint8)
  halves = {"Q6_K": [208], "Q8_0": [0], "Q4_0": [0], "Q5_0": [0]}.get(encoding, [0, 2])
  for at in halves:
    raw[..., at:at + 2] = rng.uniform(0.01, 0.1, raw.shape[:-1]).astype(np.float16)[..., None].view(np.uint8)
  stored = StoredTensor("w", (6, 512), encoding, raw.reshape(6, -1))
  groups = _affine(stored)
  assert groups is not None
  bits = groups[0].shape[-1] * 32 // 512
  assert bits == {"Q4": 4, "Q5": 5}.get(encoding[:2], 8)
  values = np.array(mx.dequantize(*groups, group_size=32, bits=bits))
  expected = stored.to_float32()
  np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5 if encoding != "Q6_K" else np.ptp(expected) / 255)


def test_what_is_held_how(goldens: Path, smollm2: Checkpoint) -> None:
  opened = golden(goldens, "llama")
  assert holding(opened, 0, on_gpu=False) == Holding(mx.float32, False) == holding(smollm2, 0, on_gpu=False)
  assert holding(smollm2, 29, on_gpu=True) == Holding(mx.float16, True)
  assert holding(opened, 0, on_gpu=True) == Holding(mx.float32, True)


def test_half_precision_travels_between_stages(goldens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """As on Metal, where hidden states are bfloat16 or float16."""
  opened = golden(goldens, "llama")
  tokens = np.load(opened.path / "tokens.npy")[0].tolist()
  expected = np.load(opened.path / "logits.npy")[0]
  for dtype in (mx.bfloat16, mx.float16):
    hold_packed(monkeypatch, dtype)
    stages = Stages("mlx", opened, (2, 4))
    assert error(stages.step([(1, 0, tokens)]), expected) < 0.1
    assert stages.models[0].memory.kv_bytes_per_token == 3 * opened.config.kv_elements_per_token * 2


class Recording(Checkpoint):
  """Notes which tensors' bytes are asked for."""
  def __init__(self, inner: Checkpoint) -> None:
    self._inner, self.path, self.read = inner, inner.path, set[str]()

  hf_config = property(lambda self: self._inner.hf_config)  # type: ignore[assignment]

  def names(self):  # type: ignore[no-untyped-def]
    return self._inner.names()

  def tensor_bytes(self, name: str) -> int:
    return self._inner.tensor_bytes(name)

  def tensor_shape(self, name: str) -> tuple[int, ...]:
    return self._inner.tensor_shape(name)

  def encoding(self, name: str) -> str:
    return self._inner.encoding(name)

  def tensor(self, name: str):  # type: ignore[no-untyped-def]
    self.read.add(name)
    return self._inner.tensor(name)

  def tokenizer(self):  # type: ignore[no-untyped-def]
    return self._inner.tokenizer()

  def close(self) -> None:
    self._inner.close()


@pytest.mark.parametrize("name", ["llama", "llama3_rope", "qwen3_moe"])
def test_a_stage_reads_and_holds_its_own_tensors_only(goldens: Path, name: str) -> None:
  held = []
  for start, end in ((0, 1), (2, 3), (4, 5)):
    recording = Recording(golden(goldens, name))
    recording.config  # noqa: B018
    shard = Shard("m", start, end, 6)
    (stage, ) = Stages("mlx", recording, shard=shard).models
    assert not {n for n in recording.read if ".layers." in n and int(n.split(".")[2]) not in shard.layers}
    assert ("model.embed_tokens.weight" in recording.read) == (shard.is_first or (shard.is_last and name == "llama"))
    held.append(stage.memory.weight_bytes)
    assert held[-1] == sum(4 * int(np.prod(recording.tensor_shape(n))) for n in needed_names(recording.names(), shard))
  assert held[1] < held[0] and held[1] < held[2]


def test_missing_tensors_are_named(goldens: Path) -> None:
  class Lacking(Recording):
    def names(self):  # type: ignore[no-untyped-def]
      return [name for name in super().names() if name != "model.layers.3.mlp.down_proj.weight"]

  with pytest.raises(ModelFilesError, match=r"lacks model\.layers\.3\.mlp\.down_proj\.weight"):
    Stages("mlx", Lacking(golden(goldens, "llama")))


# caches


def test_a_copy_shares_nothing_after_it_is_written_to() -> None:
  def step(cache: KvCache, value: float, n: int = 1) -> Any:
    return cache.update_and_fetch(*(mx.full((1, 2, n, 4), value) for _ in "kv"))[0][0, 0, :, 0].tolist()

  cache = KvCache()
  step(cache, 1, 3)
  twin = cache.copied(2)
  assert step(twin, 2) == [1, 1, 2] and step(cache, 3) == [1, 1, 1, 3] and step(twin, 4) == [1, 1, 2, 4]
  assert step(cache, 5, 600)[:5] == [1, 1, 1, 3, 5]


@pytest.mark.parametrize("window", [None, 6])
def test_sequences_side_by_side_see_only_their_own(window: int | None) -> None:
  rng = np.random.default_rng(0)
  caches = [KvCache(window) for _ in range(3)]
  for cache, length in zip(caches, (3, 300, 9), strict=True):
    cache.update_and_fetch(*(mx.array(rng.normal(size=(1, 2, length, 4))) for _ in "kv"))
  alone = [cache.copied(cache.offset) for cache in caches]
  batch = DecodeBatch((7, 8, 9), [[cache] for cache in caches], 4)
  for _ in range(5):
    new = mx.array(rng.normal(size=(3, 2, 1, 4)))
    assert batch.layers[0].offset.tolist() == [cache.offset for cache in alone]
    mask = batch.layers[0].make_mask(1)
    keys, _ = batch.layers[0].update_and_fetch(new, new)
    batch.advance()
    for row, cache in enumerate(alone):
      expected, _ = cache.update_and_fetch(new[row:row + 1], new[row:row + 1])
      seen = np.array(keys[row])[:, np.broadcast_to(True if mask is None else np.array(mask)[row, 0, 0], keys.shape[2])]
      np.testing.assert_array_equal(seen, np.array(expected[0]))
  for (own, ), cache in zip(batch.split(), alone, strict=True):
    assert own.offset == cache.offset
    np.testing.assert_array_equal(np.array(own.keys), np.array(cache.keys[..., :cache.offset, :]))


def test_batches_of_very_unequal_lengths_are_not_padded_to_the_longest(
    goldens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(mlx_stage, "_FREE_PADDING", 4)
  opened = golden(goldens, "llama")
  stages, tokens = Stages("mlx", opened), [int(t) for t in np.random.default_rng(0).integers(3, 300, 60)]
  lengths = {1: 50, 2: 3, 3: 48, 4: 4, 5: 1}
  for sequence, length in lengths.items():
    stages.step([(sequence, 0, tokens[:length])])
  rows = stages.step([(s, n, [tokens[n]]) for s, n in lengths.items()], exact=False)
  expected = Stages("mlx", opened).step([(1, 0, tokens)])
  for row, length in zip(rows, lengths.values(), strict=True):
    assert error(row, expected[length]) < 1e-5
  (stage, ) = stages.models
  assert isinstance(stage, mlx_stage.MlxStage)
  assert sorted(sorted(batch.sequences) for groups in stage._batches.values() for batch in groups) == [[1, 3, 4],
                                                                                                       [2, 5]]


def test_an_unknown_architecture_is_named(goldens: Path, tmp_path: Path) -> None:
  opened = with_window(goldens, tmp_path, "llama", model_type="llama9000")
  with pytest.raises(UnsupportedModelError, match="llama9000"):
    Stages("mlx", opened)
  opened = with_window(goldens, tmp_path / "x", "llama", model_type="../../os")
  with pytest.raises(UnsupportedModelError, match="no model of type"):
    Stages("mlx", opened)


# choosing and loading


def test_apple_silicon_prefers_mlx_and_linux_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(mlx_probe, "on_apple_silicon", lambda: False)
  assert mlx_probe.probe().rank < probe_engine("onnx").rank and mlx_probe.probe().device == "CPU"
  monkeypatch.setattr(mlx_probe, "on_apple_silicon", lambda: True)
  found = mlx_probe.probe()
  assert found.available
  choice = offered_engines("auto")[0]
  assert choice.name == "mlx" and "Apple Silicon" in choice.reason


def test_without_a_fast_blas_the_probe_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
  monkeypatch.setattr(mlx_probe, "on_apple_silicon", lambda: False)
  monkeypatch.setattr(mlx_probe, "_LINKER_CACHE", tmp_path / "none")
  monkeypatch.setattr(mlx_probe, "_LIBRARY_FOLDERS", ())
  found = mlx_probe.probe()
  assert found.available and "libopenblas0-pthread" in found.reason
  assert "libopenblas0-pthread" in offered_engines("mlx")[0].reason


def test_loading_changes_nothing_of_the_process_but_its_libraries(goldens: Path) -> None:
  """mlx-lm's own start lowers the limit of open files and imports transformers."""
  golden(goldens, "llama").close()
  code = f"""
import os, resource, sys
limit, environment = resource.getrlimit(resource.RLIMIT_NOFILE), dict(os.environ)
from pathlib import Path
from exo.inference.weights.checkpoint import open_checkpoint
from test.support.stages import Stages
stages = Stages("mlx", open_checkpoint(Path({str(goldens / "llama")!r})))
print(stages.step([(1, 0, [3, 4, 5])]).shape)
assert resource.getrlimit(resource.RLIMIT_NOFILE) == limit and dict(os.environ) == environment
assert "transformers" not in sys.modules and "mlx_lm.utils" not in sys.modules
"""
  done = subprocess.run([sys.executable, "-c", code],
                        capture_output=True,
                        text=True,
                        cwd=ROOT,
                        check=False,
                        timeout=120)
  assert done.returncode == 0 and done.stdout == "(3, 320)\n", done.stderr


@pytest.mark.skipif(sys.platform == "darwin" or mlx_probe.find_blas() is None, reason="no optimized BLAS to load")
def test_mlx_computes_with_the_optimized_blas() -> None:
  """The symbols that MLX asks for are OpenBLAS's: a library loaded with global symbols comes before MLX's own."""
  code = """
import ctypes
from exo.inference.engines import load_engine
load_engine("mlx")
import mlx.core as mx
mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
address = ctypes.cast(ctypes.CDLL(None).cblas_sgemm, ctypes.c_void_p).value
lines = [line.split() for line in open("/proc/self/maps")]
print(next(l[5] for l in lines if len(l) > 5 and int(l[0].split("-")[0], 16) <= address < int(l[0].split("-")[1], 16)))
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=120)
  assert any(name in done.stdout for name in ("openblas", "mkl", "blis"))


def test_a_failing_step_is_an_engine_error(goldens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  stages = Stages("mlx", golden(goldens, "llama"))
  monkeypatch.setattr(SlicedModel, "__call__", lambda *_: mx.ones((2, 3)) @ mx.ones((2, 3)))
  with pytest.raises(EngineError, match="mlx: ValueError"):
    stages.step([(1, 0, [3, 4, 5])])
  assert dataclasses.is_dataclass(stages.models[0].memory)
