"""GGUF files of architectures that exo has no names for: read as far as plans need it, and refused in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exo.errors import ModelFilesError, UnsupportedModelError
from exo.inference.engines import probe_engine
from exo.inference.weights.checkpoint import open_checkpoint
from exo.inference.weights.file_bytes import FileBytes
from exo.inference.weights.gguf_checkpoint import GgufCheckpoint
from exo.inference.weights.gguf_header import GgufHeader, GgufTensor, parse_gguf_header
from exo.inference.weights.plain_gguf import PlainGguf
from test.support.families import Form, all_forms
from test.support.shaped_models import TINY, write_shaped


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return write_shaped(tmp_path_factory.mktemp("gguf") / "model.gguf", TINY, "Q8_0")


def renamed(path: Path, architecture: str, tensors: dict[str, GgufTensor] | None = None, **own: Any) -> PlainGguf:
  """The file at `path` as one of this architecture, with other metadata."""
  data = FileBytes(path)
  header = parse_gguf_header(data.head(), data.size)
  metadata = {key.replace("llama.", f"{architecture}."): value for key, value in header.metadata.items()}
  metadata |= {"general.architecture": architecture}
  metadata |= {f"{architecture}.{key.replace('__', '.')}": value for key, value in own.items()}
  return PlainGguf(
      path, data, GgufHeader(metadata, header.tensors | (tensors or {}), header.header_bytes, header.kinds)
  )


def looked_at(checkpoint: PlainGguf | GgufCheckpoint) -> None:
  """All that is asked of a file before it is loaded."""
  _ = checkpoint.config, checkpoint.facts, checkpoint.size, checkpoint.head_dims, checkpoint.fingerprint
  checkpoint.tokenizer()


def test_issue_19_what_plans_need_is_in_the_header(shaped: Path) -> None:
  checkpoint = renamed(shaped, "granite")
  size = checkpoint.size
  assert checkpoint.is_plain and not checkpoint.whole_only and checkpoint.config.n_layers == TINY.layers
  assert sum(size.layer_bytes) + size.embedding_bytes == sum(map(checkpoint.tensor_bytes, checkpoint.names()))
  assert "nobody has compared" in renamed(shaped, "brandnew").whole_only
  assert "as much memory" in renamed(shaped, "gemma3", block_count=62).whole_only
  mixed = renamed(shaped, "jamba", attention__head_count_kv=[4, 0])
  assert mixed.config.kv_elements_per_token == 4 * TINY.head_dim
  assert renamed(
      shaped, "deepseek2", attention__key_length=576, attention__key_length_mla=192
  ).config.kv_elements == 576
  further = renamed(shaped, "glm4moe", block_count=2, nextn_predict_layers=1)
  assert further.config.n_layers == 1 and sum(name.startswith("mtp.1.") for name in further.names()) > 5


def test_issue_19_two_reaches_of_a_rotary_embedding_are_seen(shaped: Path) -> None:
  factors = {
      name: GgufTensor(name, (32, ), "F32", 0, 128)
      for name in ("rope_factors_long.weight", "rope_factors_short.weight")
  }
  near = {"rope__scaling__original_context_length": 4096}
  assert renamed(shaped, "phimoe", factors, **near).config.near_context == 4096
  assert renamed(shaped, "phimoe", factors).config.near_context == 0
  assert renamed(shaped, "phimoe", **near).config.near_context == 0


@pytest.mark.parametrize("architecture", ["bert", "clip", "t5", "wavtokenizer-dec", "llada"])
def test_issue_19_what_writes_no_text_is_refused_in_words(architecture: str, shaped: Path) -> None:
  with pytest.raises(UnsupportedModelError, match=f"'{architecture}': it "):
    renamed(shaped, architecture)


STRANGE: list[Any] = ["x", ["a"], [], [[8]], float("nan"), float("inf"), -256, [-1000000, 1], 2**63, True, None, 0]
KEYS = (
    "block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.key_length_mla", "attention.key_length_swa", "feed_forward_length", "context_length",
    "nextn_predict_layers", "full_attention_interval", "rope.scaling.original_context_length", "rope.dimension_count",
    "attention.sliding_window", "expert_count", "rope.freq_base", "attention.layer_norm_rms_epsilon"
)  # yapf: disable
TOKENIZER = (
    "token_type", "eot_token_id", "eos_token_id", "bos_token_id", "merges", "tokens", "pre", "model", "add_bos_token"
)


@pytest.mark.parametrize("architecture", ["granite", "llama", "gemma3", "gemma2"])
def test_issue_19_whatever_a_header_says_is_read_or_refused_in_words(architecture: str, shaped: Path) -> None:
  data = FileBytes(shaped)
  header = parse_gguf_header(data.head(), data.size)
  metadata = {key.replace("llama.", f"{architecture}."): value for key, value in header.metadata.items()}
  metadata["general.architecture"] = architecture
  kind = PlainGguf if architecture == "granite" else GgufCheckpoint
  keys = [f"{architecture}.{key}" for key in KEYS] + [f"tokenizer.ggml.{key}" for key in TOKENIZER]
  for key in keys:
    for value in STRANGE:
      strange = metadata | {f"{architecture}.rope.dimension_count": 8, key: value}
      try:
        checkpoint = kind(shaped, data, replace(header, metadata=strange))
        looked_at(checkpoint)
      except (ModelFilesError, UnsupportedModelError) as error:
        assert len(error.message) > 10
        continue
      assert checkpoint.size.kv_bytes_per_token >= 0, (key, value)
      assert all(0 <= i < TINY.words for i in checkpoint.tokenizer().eos_ids), (key, value)


def test_issue_19_layers_with_endless_numbers_are_no_layers(shaped: Path) -> None:
  for name in (f"blk.{'9' * 5000}.attn_q.weight", f"model.layers.{'9' * 5000}.q"):
    looked_at(renamed(shaped, "granite", {name: GgufTensor(name, (1, ), "F32", 0, 4)}))


def test_issue_19_engines_say_what_they_read(shaped: Path, tmp_path: Path) -> None:
  facts = renamed(shaped, "granite").facts
  for engine in ("onnx", "mlx", "tinygrad"):
    said = probe_engine(engine).repertoire.cannot(facts)
    assert said is not None and ("safetensors" in said or "no model of type" in said)
  reads = probe_engine("llama_cpp").repertoire
  assert reads.cannot(facts) is None and reads.can_cut(facts)
  assert not reads.can_cut(replace(facts, whole_only="layers share keys and values"))
  safetensors = next(form for form in all_forms() if form.form == "hub" and form.family == "granite")
  checkpoint = open_checkpoint(safetensors.lay_out(tmp_path))
  assert "take the model as gguf" in str(reads.cannot(checkpoint.facts))
  assert Form("granite", "hub") == safetensors
