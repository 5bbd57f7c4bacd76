"""MLX's quantized safetensors, read without MLX: codes in words, a scale and a bias for each group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from exo.errors import ModelFilesError
from exo.inference.onnx.linear import read_quantized
from exo.inference.weights.checkpoint import open_checkpoint
from test.support.models import convert_to_mlx
from test.support.stages import Stages

mx = pytest.importorskip("mlx.core")


def write(folder: Path, arrays: dict[str, Any], quantization: Any) -> Path:
  folder.mkdir(exist_ok=True)
  config = json.loads((Path(__file__).parent / "data/goldens/llama/config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config | {"quantization": quantization}))
  mx.save_safetensors(str(folder / "model.safetensors"), arrays)
  return folder


def packed(name: str, bits: int, group_size: int, dtype: Any, shape: tuple[int, ...] = (6, 256)) -> dict[str, Any]:
  values = mx.random.normal(shape, key=mx.random.key(bits)).astype(dtype)
  arrays = mx.quantize(values, group_size, bits)
  return dict(zip((f"{name}.weight", f"{name}.scales", f"{name}.biases"), arrays, strict=True))


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32], ids=["f16", "bf16", "f32"])
def test_dequantizing_equals_mlxs_own(tmp_path: Path, bits: int, group_size: int, dtype: Any) -> None:
  arrays = packed("a", bits, group_size, dtype)
  opened = open_checkpoint(write(tmp_path, arrays, {"bits": bits, "group_size": group_size}))
  weight, scales, biases = (arrays[f"a.{part}"] for part in ("weight", "scales", "biases"))
  expected = mx.dequantize(weight, scales.astype(mx.float32), biases.astype(mx.float32), group_size, bits)
  stored = opened.tensor("a.weight")
  np.testing.assert_allclose(stored.to_float32(), np.array(expected), rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(stored.rows(np.array([4, 1])).to_float32(), stored.to_float32()[[4, 1]])
  assert list(opened.names()) == ["a.weight"]
  assert opened.tensor_bytes("a.weight") == stored.n_bytes == sum(array.nbytes for array in arrays.values())
  quantized = read_quantized(stored, None)
  assert quantized is not None and quantized.minimum is not None
  values = quantized.scales[..., None] * quantized.codes + quantized.minimum[..., None]
  np.testing.assert_allclose(values.reshape(6, 256), stored.to_float32(), rtol=1e-5, atol=1e-6)


def test_a_module_may_be_packed_otherwise_than_the_rest(tmp_path: Path) -> None:
  arrays = packed("a", 4, 64, mx.float16) | packed("b", 8, 32, mx.float16)
  settings = {"bits": 4, "group_size": 64, "b": {"bits": 8, "group_size": 32}}
  opened = open_checkpoint(write(tmp_path, arrays, settings))
  assert opened.tensor("a.weight").shape == opened.tensor("b.weight").shape == (6, 256)


@pytest.mark.parametrize(("settings", "said"), [
    ({"bits": 8, "group_size": 64}, "does not fit"),
    ({"bits": 4, "group_size": 48}, "groups of 48"),
    ({"bits": 4, "group_size": 32, "mode": "mxfp4"}, "'mxfp4'"),
    (7, "not an object"),
])
def test_packings_that_cannot_be_read_say_so(tmp_path: Path, settings: Any, said: str) -> None:
  opened = open_checkpoint(write(tmp_path, packed("a", 4, 64, mx.float16), settings))
  with pytest.raises(ModelFilesError, match=said):
    opened.tensor("a.weight")


def test_experts_are_found_under_hugging_faces_names(tmp_path: Path) -> None:
  arrays = packed("model.layers.0.mlp.switch_mlp.up_proj", 4, 64, mx.float16, (3, 6, 256))
  opened = open_checkpoint(write(tmp_path, arrays, {"bits": 4, "group_size": 64}))
  name = "model.layers.0.mlp.experts.{}.up_proj.weight"
  stack = opened.tensor("model.layers.0.mlp.switch_mlp.up_proj.weight").to_float32()
  assert opened.has(name.format(2)) and stack.shape == (3, 6, 256)
  np.testing.assert_array_equal(opened.tensor(name.format(2)).to_float32(), stack[2])
  with pytest.raises(ModelFilesError, match="no number 3"):
    opened.tensor(name.format(3))


def test_experts_of_gguf_are_found_under_hugging_faces_names(tmp_path: Path) -> None:
  values = np.random.default_rng(0).random((4, 16, 32)).astype(np.float32)
  path = tmp_path / "m.gguf"
  writer = GGUFWriter(path, "qwen3moe")
  writer.add_block_count(1)
  writer.add_embedding_length(32)
  writer.add_head_count(4)
  writer.add_expert_count(4)
  writer.add_expert_used_count(2)
  writer.add_expert_feed_forward_length(16)
  writer.add_tensor("token_embd.weight", np.zeros((8, 32), np.float32))
  writer.add_tensor("blk.0.ffn_up_exps.weight", values)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  opened = open_checkpoint(path)
  for i in range(4):
    np.testing.assert_array_equal(
        opened.tensor(f"model.layers.0.mlp.experts.{i}.up_proj.weight").to_float32(), values[i]
    )
  assert opened.size.layer_bytes == (values.nbytes, )
  assert (opened.config.n_experts, opened.config.n_experts_per_token, opened.config.sparse_layers) == (4, 2, (True, ))


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 64), (8, 64)])
def test_onnx_computes_what_the_packed_weights_say(tmp_path: Path, goldens: Path, bits: int, group_size: int) -> None:
  """Against the same weights as floats: only int8 arithmetic lies between."""
  original = open_checkpoint(goldens / "llama")
  opened = open_checkpoint(convert_to_mlx(original, tmp_path / "m", bits, group_size))
  prompt = np.load(goldens / "llama" / "tokens.npy")[0].tolist()
  floats = tmp_path / "floats"
  floats.mkdir()
  (floats / "config.json").write_text(json.dumps(original.hf_config))
  mx.save_safetensors(
      str(floats / "model.safetensors"), {name: mx.array(opened.tensor(name).to_float32())
                                          for name in opened.names()}
  )
  expected = Stages("onnx:none", open_checkpoint(floats)).step([(1, 0, prompt)])
  got = Stages("onnx", opened, (3, )).step([(1, 0, prompt)])
  assert np.linalg.norm(got - expected) < 0.04 * np.linalg.norm(expected)
