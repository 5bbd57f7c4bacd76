"""Issue 20, lines 1 and 3: a family is one file, and `config.json` is read in every form in which it is published."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path

import pytest

from exo.errors import ModelFilesError
from exo.inference.engines import probe_engine
from exo.inference.families import catalogue
from exo.inference.families.catalogue import families, line_types
from exo.inference.families.config_form import one_form
from exo.inference.model_config import ModelConfig
from exo.inference.own_code import needs_own_code
from exo.inference.weights.checkpoint import open_checkpoint
from test.support.families import Form, few_forms
from test.support.nodes import ROOT

FOLDER = ROOT / "exo" / "inference" / "families"
CODE = {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}, "trust_remote_code": True}
GEMMA_3_4B = {  # as it is published: the rest is what its authors' class assumes
    "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "image_token_index": 262144,
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024
    },
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27, "model_type": "siglip_vision_model"}
}  # yapf: disable


def test_line_1_families_are_frozen_data_and_each_has_names_of_its_own() -> None:
  architectures = [name for family in families() for name in family.architectures]
  types = [name for family in families() for name in family.types]
  assert len(architectures) == len(set(architectures)) and len(types) == len(set(types))
  for family in families():
    with pytest.raises(dataclasses.FrozenInstanceError):
      family.types = ()  # type: ignore[misc]


def test_line_1_what_engines_run_of_the_llama_line_follows_from_the_files() -> None:
  for engine, experts in (("tinygrad", True), ("onnx", False), ("mlx", True)):
    assert probe_engine(engine).repertoire.text_models == line_types(experts)


def test_line_1_another_family_is_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
  """Every engine of the line takes it, configurations of it are read as it says, and its GGUF architecture is known."""
  (tmp_path / "zebra.py").write_text(
      "from exo.inference.families.family import Family, Line\n"
      "FAMILIES = (Family(('zebra', ), types=('zebra_text', ), line=Line(qk_norm=True, norm_offset=1.0)), )\n"
  )
  package = importlib.import_module("exo.inference.families")
  monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
  monkeypatch.setattr(catalogue, "_FOLDERS", (*catalogue._FOLDERS, tmp_path))
  made = ("families", "_by_architecture", "_by_type", "translated")
  for name in made:
    getattr(catalogue, name).cache_clear()
  try:
    assert "zebra_text" in line_types() and catalogue.family_of("zebra") is not None
    assert "zebra_text" in probe_engine("tinygrad").repertoire.text_models
    config = {
        "model_type": "zebra_text", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 9
    }
    assert ModelConfig.from_hf(config).qk_norm and ModelConfig.from_hf(config).norm_offset == 1
    assert catalogue.translated()["zebra"] == "zebra_text"
  finally:
    sys.modules.pop("exo.inference.families.zebra", None)
    monkeypatch.undo()
    for name in made:
      getattr(catalogue, name).cache_clear()
  assert catalogue.family_of("zebra") is None


def test_line_3_what_gemma_3_leaves_out_is_what_its_class_assumes() -> None:
  found = ModelConfig.from_hf(GEMMA_3_4B)
  assert (found.n_heads, found.n_kv_heads, found.head_dim, found.vocab_size) == (8, 4, 256, 262208)
  assert found.max_context == 131072 and found.tied and found.qk_norm and found.activation == "gelu_tanh"
  assert found.attention_scale == 256**-0.5 and found.norm_eps == 1e-6
  assert [i for i, window in enumerate(found.sliding_window) if window is None] == [5, 11, 17, 23, 29]
  assert {rope.theta for rope in found.rope} == {1e6, 1e4}
  assert found.rope[5].kind == "linear" and found.rope[5].factor == 8 and found.rope[0].kind == "default"


def test_line_3_gemma_3_says_the_same_as_transformers_5_writes_it() -> None:
  newer = {
      "model_type": "gemma3", "text_config": GEMMA_3_4B["text_config"] | {  # type: ignore[operator]
          "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5 + ["sliding_attention"] * 4,
          "rope_scaling": None,
          "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                              "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
      }
  }  # yapf: disable
  assert ModelConfig.from_hf(newer) == ModelConfig.from_hf(GEMMA_3_4B)


def test_line_3_mistral_3_leaves_out_how_many_heads_keys_have() -> None:
  text = {"model_type": "mistral", "hidden_size": 5120, "num_hidden_layers": 2, "head_dim": 128, "vocab_size": 131072}
  assert ModelConfig.from_hf({"model_type": "mistral3", "text_config": text}).n_kv_heads == 8


@pytest.mark.parametrize("kind", ["deepseek_v3", "kimi_k2", "phi3", "phimoe", "minimax_m2", "kimi_linear"])
def test_line_3_code_of_a_repository_is_not_needed_where_the_family_is_known(kind: str) -> None:
  assert not needs_own_code({"model_type": kind} | CODE)


def test_line_3_code_of_a_repository_is_refused_where_nobody_knows_the_type() -> None:
  assert needs_own_code({"model_type": "evil"} | CODE)
  assert needs_own_code({"model_type": "evil", "text_config": {"model_type": "more_evil"}} | CODE)
  assert not needs_own_code({"model_type": "evil", "text_config": {"model_type": "llama"}} | CODE)
  with pytest.raises(ModelFilesError, match="code of its own repository"):
    ModelConfig.from_hf({"model_type": "evil", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
                        | CODE)


def test_line_3_one_form_changes_nothing_that_is_there() -> None:
  for form in few_forms():
    if form.form == "gguf":
      continue
    config = json.loads((form.source / ("config.json" if form.form == "hub" else "config.v5.json")).read_text())
    once = one_form(config)
    assert one_form(once) == once
    inner, given = once.get("text_config", once), config.get("text_config", config)
    for key, value in given.items():
      assert inner[key] == value or key in ("time_step_limit", "layer_types", "sliding_window_pattern"), key


def test_line_3_numbers_that_json_has_no_word_for_are_read() -> None:
  limits = [0.0, {"__float__": "Infinity"}]
  assert one_form({"model_type": "mamba2", "time_step_limit": limits})["time_step_limit"] == [0.0, math.inf]


@pytest.mark.parametrize("odd", [None, 5, "x", [], {"text_config": 5}, {"rope_parameters": 7}, {"layer_types": {}}])
def test_line_3_odd_values_are_left_to_whoever_reads_them(odd: object) -> None:
  for kind in ("gemma3", "granitemoehybrid", "nemotron_h", "kimi_linear", "exaone4", "gpt_neox", "mamba2", "nobody's"):
    config = {"model_type": kind} | (odd if isinstance(odd, dict) else {"hidden_size": odd, "rope_parameters": odd})
    assert one_form(config)["model_type"] == kind
    with pytest.raises(ModelFilesError):
      ModelConfig.from_hf({**config, "num_hidden_layers": -1, "text_config": {"num_hidden_layers": -1}})


def test_line_3_what_is_left_out_is_what_transformers_assumes() -> None:
  """The table is made of its classes; another version of it may say more, and nothing else."""
  configuration_auto = pytest.importorskip("transformers.models.auto.configuration_auto")
  described = importlib.import_module("scripts.families.config_defaults").described
  types = json.loads((FOLDER / "defaults.json").read_text())["types"]
  for kind in ("gemma3_text", "mistral", "qwen2", "granitemoehybrid", "nemotron_h", "exaone4", "falcon_h1"):
    assert types[kind] == described(configuration_auto.CONFIG_MAPPING[kind]), kind


@pytest.mark.skipif(not probe_engine("mlx").available, reason="mlx is not installed")
@pytest.mark.parametrize("family", ["ernie4_5_moe", "hunyuan_v1_moe", "jamba"])
def test_line_3_what_mlx_gets_wrong_it_refuses_by_name(family: str, tmp_path: Path) -> None:
  facts = open_checkpoint(Form("granite", "hub").lay_out(tmp_path)).facts
  told = dataclasses.replace(
      facts,
      model_type=family,
      repository_type=family,
      tensors=facts.tensors | {"model.layers.#.mlp.moe_statics.e_score_correction_bias"}
  )
  why = probe_engine("mlx").cannot(told)
  assert why is not None and family in why and "take the model" in why
