"""gpt-oss's experts as MXFP4, in the two forms in which it is published, are those numbers as floats; what MLX keeps packed, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exo.errors import ModelFilesError
from exo.inference.engines import probe_engine
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.inference.weights.microscaling import words_and_scales
from test.support.families import Form
from test.support.stages import Stages

pytestmark = pytest.mark.skipif(not probe_engine("mlx").available, reason="mlx cannot run here")

IDS = [int(i) for i in np.random.default_rng(2).integers(5, 300, 40)]
EXPERTS = "model.layers.{}.mlp.experts."


def forms(folder: Path) -> dict[str, Path]:
  """The family's checkpoint with its experts rounded to MXFP4: as floats, as its authors pack them, and as MLX does."""
  import mlx.core as mx
  source = Form("gpt_oss", "hub").lay_out(folder / "source")
  config = json.loads((source / "config.json").read_text())
  published = mx.load(str(source / "model.safetensors"))
  weights: dict[str, dict[str, Any]] = {"floats": dict(published), "authors": dict(published), "mlx": dict(published)}
  for layer in range(config["num_hidden_layers"]):
    for part in ("gate_up_proj", "down_proj"):
      name = EXPERTS.format(layer) + part
      rows = published[name].swapaxes(-1, -2).astype(mx.float32)
      codes, scales = mx.quantize(rows, 32, 4, mode="mxfp4")
      rounded = mx.dequantize(codes, scales, None, 32, 4, mode="mxfp4")
      weights["floats"][name] = mx.contiguous(rounded.swapaxes(-1, -2).astype(mx.float32))
      del weights["authors"][name], weights["mlx"][name]
      blocks = mx.contiguous(codes).view(mx.uint8).reshape(*scales.shape, 16)
      weights["authors"] |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
      bias = weights["mlx"].pop(f"{name}_bias")
      split = {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)
               } if part != "down_proj" else {part: slice(None)}
      for own, every in split.items():
        module = EXPERTS.format(layer) + own
        weights["mlx"] |= {
            f"{module}.weight": mx.contiguous(codes[:, every]), f"{module}.scales": mx.contiguous(scales[:, every]),
            f"{module}.bias": mx.contiguous(bias[:, every])
        }
  packing: dict[str, dict[str, Any]] = {
      "floats": {}, "authors": {"quantization_config": {"quant_method": "mxfp4"}},
      "mlx": {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}
  }
  made = {}
  for form, arrays in weights.items():
    made[form] = folder / form
    made[form].mkdir()
    mx.save_safetensors(str(made[form] / "model.safetensors"), arrays)
    (made[form] / "config.json").write_text(json.dumps(config | packing[form]))
    for file in source.glob("tokenizer*"):
      (made[form] / file.name).symlink_to(file.resolve())
  return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
  return forms(tmp_path_factory.mktemp("mxfp4"))


def logits(checkpoint: Checkpoint, cuts: tuple[int, ...] = ()) -> Any:
  stages = Stages("mlx", checkpoint, cuts)
  found = stages.step([(1, 0, IDS)]).copy()
  stages.close()
  return found


@pytest.mark.parametrize("form", ["authors", "mlx"])
@pytest.mark.parametrize("cuts", [(), (2, )])
def test_issue_20_line_2_both_forms_are_the_same_numbers(
    form: str, cuts: tuple[int, ...], made: dict[str, Path]
) -> None:
  packed, floats = open_checkpoint(made[form]), open_checkpoint(made["floats"])
  assert "MXFP4" in packed.facts.encodings and probe_engine("mlx").cannot(packed.facts) is None
  assert np.abs(logits(packed, cuts) - logits(floats)).max() < 1e-4


def test_issue_20_line_2_what_stays_packed_is_the_same_numbers(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
  """As on a GPU, whose memory the floats would not fit."""
  import mlx.core as mx

  from exo.inference.mlx import stage as mlx_stage
  from exo.inference.mlx.weights import Holding
  expected = logits(open_checkpoint(made["floats"]))
  monkeypatch.setattr(mlx_stage, "holding", lambda *_: Holding(mx.float32, True))
  monkeypatch.setattr(mlx_stage, "lay_out_for_cpu", lambda *_: None)
  for form in ("authors", "mlx"):
    assert np.abs(logits(open_checkpoint(made[form])) - expected).max() < 1e-2


def test_issue_20_line_2_words_come_back_as_they_were(made: dict[str, Path]) -> None:
  checkpoint = open_checkpoint(made["mlx"])
  name = EXPERTS.format(1) + "up_proj.weight"
  stored = checkpoint.tensor(name)
  words, scales = words_and_scales(stored)
  import mlx.core as mx
  raw = mx.load(str(made["mlx"] / "model.safetensors"))
  assert np.array_equal(words, raw[name]) and np.array_equal(scales, raw[name.replace("weight", "scales")])
  assert stored.shape == checkpoint.tensor_shape(name) and checkpoint.tensor_bytes(name) == words.nbytes + scales.nbytes


def test_issue_20_line_2_another_packing_is_called_by_its_name(made: dict[str, Path], tmp_path: Path) -> None:
  import mlx.core as mx
  arrays = mx.load(str(made["mlx"] / "model.safetensors"))
  name = EXPERTS.format(0) + "up_proj"
  arrays[f"{name}.scales"] = mx.repeat(arrays[f"{name}.scales"], 2, -1)  # groups of 16, as NVFP4 has
  mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
  for file in made["mlx"].iterdir():
    if file.name.startswith("tokenizer"):
      (tmp_path / file.name).symlink_to(file.resolve())
  config = json.loads((made["mlx"] / "config.json").read_text())
  packing = {"group_size": 16, "bits": 4, "mode": "nvfp4"}
  (tmp_path / "config.json").write_text(json.dumps(config | {"quantization": packing}))
  with pytest.raises(ModelFilesError, match=r"'nvfp4', 4 bits, groups of 16; .* and MXFP4"):
    open_checkpoint(tmp_path).encoding(f"{name}.weight")
