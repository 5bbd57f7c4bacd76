"""Checkpoints: every encoding read right, every damaged header refused with a reason."""

import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.errors import ExoError, ModelFilesError, UnsupportedModelError
from exo.inference.model_config import ModelConfig
from exo.inference.onnx.linear import read_quantized
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.inference.weights.gguf_header import parse_gguf_header
from exo.inference.weights.safetensors_checkpoint import parse_safetensors_header
from exo.inference.weights.tensor import BLOCKS, StoredTensor

QUANTIZED = [name for name in BLOCKS if name.startswith("Q")]


def stored(encoding: str, rows: int = 6, columns: int = 512) -> StoredTensor:
  """A tensor of plausible bytes: random blocks whose scales are small finite halves."""
  rng = np.random.default_rng(0)
  block, size = BLOCKS[encoding]
  raw = rng.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
  scales = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208, ), "Q4_1": (0, 2), "Q5_1": (0, 2)}.get(encoding, (0, ))
  for at in scales:
    raw[..., at:at + 2] = (rng.random((rows, columns // block, 1)) * 0.1).astype("<f2").view(np.uint8)
  return StoredTensor("w", (rows, columns), encoding, raw.reshape(rows, -1))


@pytest.mark.parametrize("encoding", QUANTIZED)
def test_dequantizing_equals_ggmls_own(encoding: str) -> None:
  tensor = stored(encoding)
  np.testing.assert_allclose(tensor.to_float32(), dequantize(tensor.data, GGMLQuantizationType[encoding]), rtol=1e-6)


@pytest.mark.parametrize("encoding", QUANTIZED)
def test_blocks_for_onnx_hold_the_same_weights(encoding: str) -> None:
  tensor = stored(encoding)
  quantized = read_quantized(tensor, None)
  assert quantized is not None
  half = 1 << (quantized.bits - 1)
  minimum = -half * quantized.scales if quantized.minimum is None else quantized.minimum
  values = quantized.scales[..., None] * quantized.codes + minimum[..., None]
  expected = tensor.to_float32()
  np.testing.assert_allclose(values.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16"])
def test_floats(encoding: str) -> None:
  values = np.array([[1.5, -2.25, 0.0078125, 1024.0]], np.float32)
  raw = {"F32": values, "F16": values.astype("<f2"), "BF16": (values.view(np.uint32) >> 16).astype("<u2")}[encoding]
  np.testing.assert_array_equal(StoredTensor("w", (1, 4), encoding, raw.view(np.uint8)).to_float32(), values)


def test_rows_alone(smollm2: Checkpoint) -> None:
  embedding = smollm2.tensor("model.embed_tokens.weight")
  np.testing.assert_array_equal(embedding.rows(np.array([5, 0, 5])).to_float32(), embedding.to_float32()[[5, 0, 5]])


def test_smollm2_is_what_it_says(smollm2: Checkpoint) -> None:
  config = smollm2.config
  assert (config.n_layers, config.hidden_size, config.n_heads, config.n_kv_heads,
          config.head_dim) == (30, 576, 9, 3, 64)
  assert config.tied and config.max_context == 8192 and config.rope[0].theta == 100000
  size = smollm2.size
  assert size.n_layers == 30 and sum(size.layer_bytes) + size.embedding_bytes < smollm2.path.stat().st_size
  assert size.kv_bytes_per_token == 2 * 3 * 64 * 4


def test_rotary_rows_of_gguf_come_in_hugging_faces_order(tmp_path: Path) -> None:
  """llama.cpp's converter interleaves the halves of each head; reading undoes exactly that."""
  heads, hidden = 4, 64
  original = np.random.default_rng(0).random((hidden, hidden)).astype(np.float32)
  permuted = original.reshape(heads, 2, hidden // heads // 2, hidden).swapaxes(1, 2).reshape(hidden, hidden)
  path = tmp_path / "m.gguf"
  writer = GGUFWriter(path, "llama")
  writer.add_block_count(1)
  writer.add_embedding_length(hidden)
  writer.add_head_count(heads)
  writer.add_tensor("token_embd.weight", np.zeros((8, hidden), np.float32))
  writer.add_tensor("blk.0.attn_q.weight", permuted)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  opened = open_checkpoint(path)
  np.testing.assert_array_equal(opened.tensor("model.layers.0.self_attn.q_proj.weight").to_float32(), original)


def test_quantized_gguf_round_trip(tmp_path: Path) -> None:
  values = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
  path = tmp_path / "m.gguf"
  writer = GGUFWriter(path, "llama")
  writer.add_block_count(1)
  writer.add_embedding_length(64)
  writer.add_head_count(4)
  writer.add_tensor(
      "token_embd.weight", quantize(values, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0
  )
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  read = open_checkpoint(path).tensor("model.embed_tokens.weight").to_float32()
  assert np.abs(read - values).max() < 0.03


def header_of(smollm2: Checkpoint) -> tuple[bytes, int]:
  with smollm2.path.open("rb") as file:
    return file.read(4_000_000), smollm2.path.stat().st_size


def test_a_cut_off_gguf_says_so(smollm2: Checkpoint) -> None:
  data, size = header_of(smollm2)
  with pytest.raises(ModelFilesError, match="cut off"):
    parse_gguf_header(memoryview(data), size - 1)
  with pytest.raises(ModelFilesError, match="ends too early"):
    parse_gguf_header(memoryview(data[:1000]), size)
  with pytest.raises(ModelFilesError, match="not a GGUF file"):
    parse_gguf_header(memoryview(b"PK" + data[2:]), size)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_damage_to_a_gguf_header_does_more_than_raise(smollm2: Checkpoint, data: st.DataObject) -> None:
  raw, size = header_of(smollm2)
  damaged = bytearray(raw[:20_000])
  for _ in range(data.draw(st.integers(1, 5))):
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
  with contextlib.suppress(ExoError):
    parse_gguf_header(memoryview(damaged), size)


def safetensors(entries: dict, payload: int = 64) -> bytes:
  header = json.dumps(entries).encode()
  return struct.pack("<Q", len(header)) + header + bytes(payload)


GOOD = {
    "a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    "b": {"dtype": "F16", "shape": [16], "data_offsets": [32, 64]}
}


def test_a_good_safetensors_header() -> None:
  data = safetensors(GOOD)
  entries = parse_safetensors_header(memoryview(data), len(data), "m.safetensors")
  assert entries["b"].start == len(data) - 32 and entries["b"].n_bytes == 32


@pytest.mark.parametrize(("change", "reason"), [
    ({"b": {"dtype": "F16", "shape": [16], "data_offsets": [16, 48]}}, "overlaps"),
    ({"b": {"dtype": "F16", "shape": [16], "data_offsets": [64, 96]}}, "cut off"),
    ({"b": {"dtype": "F16", "shape": [15], "data_offsets": [32, 64]}}, "contradict"),
    ({"b": {"dtype": "F16", "shape": [-16], "data_offsets": [32, 64]}}, "malformed"),
    ({"b": {"dtype": "Q9", "shape": [16], "data_offsets": [32, 64]}}, "unknown type"),
    ({"b": {"dtype": "F16", "shape": [16]}}, "malformed"),
    ({"b": 3}, "malformed"),
])
def test_bad_safetensors_headers_are_refused(change: dict, reason: str) -> None:
  data = safetensors(GOOD | change)
  with pytest.raises(ModelFilesError, match=reason):
    parse_safetensors_header(memoryview(data), len(data), "m.safetensors")


def test_absurd_safetensors_lengths_are_refused() -> None:
  for length in (0, 1, 2**40, 2**63):
    data = struct.pack("<Q", length) + b"{}"
    with pytest.raises(ModelFilesError):
      parse_safetensors_header(memoryview(data), len(data), "m.safetensors")


def test_absurd_configurations_are_refused() -> None:
  good = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 10}
  assert ModelConfig.from_hf(good).head_dim == 16
  for change in ({"num_hidden_layers": 10**9}, {"hidden_size": "64"}, {"vocab_size": -1}, {"num_attention_heads": 0},
                 {"sliding_window": 1.5}, {"rope_scaling": {"factor": "x"}}):
    with pytest.raises(ModelFilesError):
      ModelConfig.from_hf(good | change)
  code = {"auto_map": {"AutoModel": "evil.Model"}}
  with pytest.raises(ModelFilesError, match="code of its own repository"):
    ModelConfig.from_hf(good | {"model_type": "evil"} | code)
  assert ModelConfig.from_hf(good | code) == ModelConfig.from_hf(good)  # nobody needs it


def test_older_and_newer_rotary_keys_mean_the_same(goldens: Path) -> None:
  config = json.loads((goldens / "gemma3_text" / "config.json").read_text())
  older = {k: v for k, v in config.items() if k not in ("rope_parameters", "layer_types")}
  newer = {
      k: v
      for k, v in config.items()
      if k not in ("rope_theta", "rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern")
  }
  assert ModelConfig.from_hf(older).rope == ModelConfig.from_hf(newer).rope
  assert ModelConfig.from_hf(older).sliding_window == ModelConfig.from_hf(newer).sliding_window


def test_what_is_no_model_is_refused(tmp_path: Path, smollm2: Checkpoint) -> None:
  with pytest.raises(ModelFilesError, match="holds no model"):
    open_checkpoint(tmp_path)
  (tmp_path / "x.txt").write_text("hello")
  with pytest.raises(ModelFilesError, match="not a model"):
    open_checkpoint(tmp_path / "x.txt")
  writer = GGUFWriter(tmp_path / "m.gguf", "clip")
  writer.add_tensor("x", np.zeros(4, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(UnsupportedModelError, match="architecture 'clip'"):
    open_checkpoint(tmp_path / "m.gguf")
  with pytest.raises(ModelFilesError, match="no tensor"):
    smollm2.tensor("model.layers.99.mlp.up_proj.weight")
