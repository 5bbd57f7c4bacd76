"""The registry, names, and which files of a repository make a model."""

from __future__ import annotations

import pytest

from exo.download.manifest import RepoFile, wanted_files
from exo.errors import DownloadError
from exo.inference.weights.parts import Part, part_of
from exo.model_card import HubSource, parse_repo
from exo.models import CARDS, card_of

# numbers of weights as the hub shows them for these repositories
PUBLISHED = {
    "smollm2-135m": 134_515_008, "llama-3.2-1b": 1_235_814_400, "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248, "llama-3.3-70b": 70_553_706_496, "mistral-7b": 7_248_023_552,
    "mistral-nemo": 12_247_782_400, "qwen-2.5-0.5b": 494_032_768, "qwen-2.5-1.5b": 1_543_714_304,
    "qwen-2.5-7b": 7_615_616_512, "gemma2-2b": 2_614_341_888, "gemma2-9b": 9_241_705_984, "phi-4": 14_659_507_200,
    "qwen-3-8b": 8_190_735_360, "qwen-3-30b-a3b": 30_532_122_624, "gemma3-270m": 268_098_176
}
OF_THE_FIRST_VERSION = [
    "llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "llama-3.3-70b", "mistral-nemo",
    "mistral-large", "deepseek-coder-v2-lite", "deepseek-v3", "deepseek-r1", "deepseek-r1-distill-qwen-1.5b",
    "deepseek-r1-distill-llama-70b", "qwen-2.5-0.5b", "qwen-2.5-72b", "qwen-2.5-coder-7b", "qwen-2.5-math-7b",
    "nemotron-70b", "gemma2-9b", "gemma2-27b", "phi-3.5-mini", "phi-4"
]


def test_every_card_is_complete() -> None:
  assert len(CARDS) >= 70 and set(OF_THE_FIRST_VERSION) <= set(CARDS)
  for card in CARDS.values():
    assert card.pretty_name and card.layers and card.parameters and card.repos and card.total_bytes
    assert all(parse_repo(source.repo) == source for source in card.repos.values())
    assert card.id == card.id.lower() and "/" not in card.id and ":" not in card.id


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_follow_from_shapes(name: str) -> None:
  assert CARDS[name].parameters == PUBLISHED[name]


def test_names_of_formats_revisions_and_variants() -> None:
  card = card_of("llama-3.2-3b:mlx")
  assert card and card.source == HubSource("mlx-community/Llama-3.2-3B-Instruct-4bit") and card.format == "mlx"
  assert card.total_bytes and card.total_bytes < CARDS["llama-3.2-3b"].total_bytes  # type: ignore[operator]
  assert card_of("llama-3.2-3b:nonsense") is None
  assert parse_repo("org/name@v1.2:Q8_0") == HubSource("org/name", "v1.2", "Q8_0")
  folders = {HubSource("o/n", *rest).folder for rest in (("main", ), ("v1", ), ("main", "Q8_0"), ("a/b", "Q8_0"))}
  assert folders == {"o--n", "o--n@v1", "o--n+Q8_0", "o--n@a_b+Q8_0"}


def names(files: list[str], variant: str | None = None) -> list[str]:
  return [file.name for file in wanted_files("org/x", [RepoFile(name, 10) for name in files], variant)]


def test_which_files_make_a_model() -> None:
  common = ["config.json", "tokenizer.json", "README.md", "x.py", ".gitattributes"]
  assert names([*common, "model.safetensors", "pytorch_model.bin",
                "sub/model.safetensors"]) == ["config.json", "tokenizer.json", "model.safetensors"]
  parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
  assert names([*parts, "consolidated.safetensors", "model.safetensors.index.json"])[1:] == parts
  ggufs = ["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-IQ1_S.gguf", "mmproj-f16.gguf"]
  assert names(ggufs) == ["m-Q4_K_M.gguf"] and names(ggufs, "Q8_0") == ["m-Q8_0.gguf"]
  assert names(ggufs, "q8_0") == names(ggufs, "m-Q8_0.gguf") == ["m-Q8_0.gguf"]
  assert names(["model.safetensors", *ggufs], "Q8_0") == ["m-Q8_0.gguf"]
  split = [f"Q4/m-Q4_K_M-{i:05d}-of-00003.gguf" for i in (3, 1, 2)]
  assert names([*ggufs[:1], *split]) == sorted(split) == names(split, "Q4_K_M") == names(split, split[0])
  assert names([*split, "Q4/mmproj-F16.gguf", "Q4/._m-Q4_K_M-00001-of-00003.gguf"]) == sorted(split)
  assert names(["m-Q8_0.GGUF"]) == ["m-Q8_0.GGUF"]
  for bad, variant, words in ((["x.bin"], None, "no weights"), (ggufs, "Q2_K", "several GGUF files|no GGUF"),
                              (["a-IQ1_S.gguf", "b-IQ2_S.gguf"], None,
                               "several GGUF files"), (split[:2], None, "Q4/m-Q4_K_M-00002-of-00003.gguf is missing")):
    with pytest.raises(DownloadError, match=words):
      names(bad, variant)


@pytest.mark.parametrize(("name", "part"), [("model.layers.7.mlp.up_proj.weight", 7),
                                            ("language_model.model.layers.12.input_layernorm.weight", 12),
                                            ("model.embed_tokens.weight", Part.EMBEDDING),
                                            ("model.embed_tokens.scales", Part.EMBEDDING),
                                            ("language_model.lm_head.weight", Part.HEAD),
                                            ("model.norm.weight", Part.NORM),
                                            ("vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight", Part.UNUSED),
                                            ("multi_modal_projector.mm_input_projection_weight", Part.UNUSED),
                                            ("model.rotary_emb.inv_freq", Part.SHARED)])
def test_parts_of_a_model(name: str, part: int | Part) -> None:
  assert part_of(name) == part
