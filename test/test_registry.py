"""The models that exo knows by name, and those that a user adds to them in models.toml."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from exo.download.model_store import ModelStore
from exo.download.user_models import read_registry, registry_in
from exo.model_card import HubSource, is_quantization
from exo.models import BUILT_IN, CARDS
from exo.orchestration.model_profile import profile_of_card
from exo.sampling_defaults import SamplingDefaults
from test.support.nodes import exo, ring

# families of late 2026 in the sizes that people run
FAMILIES = {
    "qwen": ["3.5-0.8b", "3.5-2b", "3.5-4b", "3.5-9b", "3.5-27b", "3.5-35b-a3b", "3.5-122b-a10b", "3.5-397b-a17b",
             "3.6-27b", "3.6-35b-a3b", "3-next-80b-a3b", "3-coder-next"],
    "gemma4": ["e2b", "e4b", "12b", "26b-a4b", "31b"], "gpt-oss": ["20b", "120b"],
    "glm": ["4.5-air", "4.6", "4.7", "4.7-flash", "5", "5.1"],
    "deepseek": ["v3", "v3.1", "v3.1-terminus", "v3.2", "r1", "r1-0528"],
    "kimi": ["k2", "k2-thinking", "k2.5", "k2.6"], "minimax": ["m2", "m2.1", "m2.5", "m2.7"],
    "mistral": ["small-3.2", "large-3"], "ministral-3": ["3b", "8b", "14b", "3b-reasoning", "8b-reasoning", "14b-reasoning"],
    "devstral": ["small", "small-2", "2"], "nemotron-3": ["nano-4b", "nano", "super"],
    "granite-4": ["350m", "1b", "micro", "h-350m", "h-1b", "h-micro", "h-tiny", "h-small"],
    "lfm2": ["350m", "700m", "1.2b", "2.6b", "8b-a1b", "24b-a2b"], "smollm3": ["3b"], "llama-4": ["scout", "maverick"],
    "phi-4": ["mini", "mini-reasoning", "reasoning", "reasoning-plus"]
}  # yapf: disable


def test_line_9_the_families_are_there_in_both_formats() -> None:
  for family, sizes in FAMILIES.items():
    for size in sizes:
      card = CARDS[f"{family}-{size}"]
      assert "gguf" in card.repos and ("mlx" in card.repos or card.id == "mistral-large-3"), card.id
      assert card.kind is not None and card.kind.context >= 16384
      assert family in ("phi-4", "granite-4") or card.sampling.said or card.id in ("deepseek-v3", "phi-4-mini")
  assert CARDS["phi-4"].repos.keys() == {"gguf", "mlx", "safetensors"}


def test_line_9_cards_say_what_can_be_used() -> None:
  repos = [source.repo for card in CARDS.values() for source in card.repos.values()]
  assert len(repos) == len(set(repos))  # a folder belongs to one name
  for card in CARDS.values():
    assert set(card.capabilities) <= {"tools", "thinking"}
    assert all(map(is_quantization, card.quantizations)) and bool(card.quantizations) == ("gguf" in card.repos)
    for form in card.forms:
      taken = BUILT_IN.card_of(f"{card.id}:{form}")
      assert taken is not None and taken.form == form and taken.total_bytes, (card.id, form)
      known = profile_of_card(taken)
      assert known.facts is not None and known.packing and known.size is not None
      assert known.capabilities == ("completion", *card.capabilities)
    assert card.sampling.is_possible
  assert CARDS["gemma4-e4b"].sampling == SamplingDefaults(1.0, 0.95, 64)
  assert CARDS["qwen-3.5-9b"].capabilities == ("tools", "thinking") and CARDS["phi-4"].capabilities == ()


def test_line_9_sizes_of_forms_are_those_of_files() -> None:
  """In GB, as the hub shows them."""
  for name, size in (
      ("llama-3.2-3b:safetensors", 6.43), ("llama-3.2-3b:gguf", 2.02), ("llama-3.2-3b:Q8_0", 3.42),
      ("llama-3.2-3b:mlx", 1.81), ("llama-3.1-8b:Q6_K", 6.6), ("llama-3.1-8b:Q2_K", 3.18), ("gpt-oss-20b:gguf", 13.7),
      ("gpt-oss-20b:MXFP4", 13.7), ("deepseek-v3.1:safetensors", 678), ("qwen-3-30b-a3b:Q4_K_M", 18.6)
  ):  # yapf: disable
    card = BUILT_IN.card_of(name)
    assert card is not None and card.total_bytes is not None
    assert card.total_bytes / 1e9 == pytest.approx(size, rel=0.06), name


MINE = """
[house-8b]
name = "The house model"
gguf = "people/House-8B-GGUF"
safetensors = "people/House-8B@v2"
type = "llama"
context = 32768
layers = 32
parameters = 8_030_261_248
quantizations = ["Q4_K_M", "Q8_0"]
capabilities = ["tools"]
sampling = { temperature = 0.5, top_k = 40 }

["plain"]
gguf = "people/Plain-GGUF:Q5_K_M"

["llama-3.2-3b"]
gguf = "people/Llama-3.2-3B-mine-GGUF"
sampling = { temperature = 0.2 }
"""


def write_mine(home: Path, text: str) -> Path:
  folder = home / ".exo"
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "models.toml").write_text(text, "utf-8")
  return home


def test_line_9_models_toml_adds_names_and_changes_known_ones(tmp_path: Path) -> None:
  registry = registry_in(write_mine(tmp_path, MINE))
  assert registry.notes == () and registry.cards.keys() == {*CARDS, "house-8b", "plain"}
  house = registry.cards["house-8b"]
  assert house.pretty_name == "The house model" and house.kind is not None and house.kind.context == 32768
  assert house.repos == {"gguf": HubSource("people/House-8B-GGUF"), "safetensors": HubSource("people/House-8B", "v2")}
  assert house.capabilities == ("tools", ) and house.sampling == SamplingDefaults(0.5, top_k=40)
  q8 = registry.card_of("house-8b:Q8_0")
  assert q8 is not None and q8.source == HubSource("people/House-8B-GGUF", "main", "Q8_0")
  assert q8.total_bytes is not None and abs(q8.total_bytes / 8.54e9 - 1) < 0.01
  known = profile_of_card(house)
  assert known.facts is not None and known.size is not None and known.size.n_layers == 32
  plain = registry.cards["plain"]
  assert plain.kind is None and plain.source == HubSource(
      "people/Plain-GGUF", "main", "Q5_K_M"
  ) and plain.format == "gguf"
  changed, built_in = registry.cards["llama-3.2-3b"], CARDS["llama-3.2-3b"]
  assert changed.repos["gguf"].repo == "people/Llama-3.2-3B-mine-GGUF" and changed.repos["mlx"] == built_in.repos["mlx"]
  assert changed.layers == built_in.layers and changed.kind == built_in.kind and changed.quantizations == ()
  assert changed.sampling == SamplingDefaults(0.2) and registry.is_registered(HubSource("people/Plain-GGUF"))
  assert registry_in(tmp_path / "none") is BUILT_IN
  names = {entry.id for entry in ModelStore(tmp_path).listed()}
  assert names == {*CARDS, "house-8b", "plain"}


@pytest.mark.parametrize(("entry", "words"), [
    ('gguf = "x"', r"\[m\]: gguf must be a repository of the hub as org/name"),
    ('mlx = "org/name:Q8_0"', r"\[m\]: mlx must be a repository"),
    ('repo = "org/name"', r"\[m\]: repo is no key: there are gguf, mlx, safetensors, name"),
    ('name = "M"', r"\[m\]: it names no repository"), ('gguf = 5', r"\[m\]: gguf must be a short text"),
    ('gguf = "o/n"\nquantizations = ["Q99"]', r"\[m\]: quantizations must be a list of quantizations as Q4_K_M"),
    ('gguf = "o/n"\ncapabilities = "tools"', r"\[m\]: capabilities must be a list of some of tools, thinking"),
    ('gguf = "o/n"\nsampling = { heat = 1 }', r"\[m\]: sampling must be a table with some of temperature, top_p"),
    ('gguf = "o/n"\nsampling = { top_k = 0.5 }', r"\[m\]: sampling.top_k must be a whole number from 0"),
    ('gguf = "o/n"\nsampling = { top_p = nan }', r"\[m\]: sampling.top_p must be a number from 0 to 1, not nan"),
    ('gguf = "o/n"\ncontext = 4096', r"\[m\]: type, context, layers, parameters go together: type is missing"),
    ('gguf = "o/n"\ntype = "llama"\ncontext = 0\nlayers = 1\nparameters = 1', r"\[m\]: context must be a whole number"),
])  # yapf: disable
def test_line_9_a_wrong_entry_is_told_and_the_others_count(entry: str, words: str, tmp_path: Path) -> None:
  registry = registry_in(write_mine(tmp_path, f"{MINE}\n[m]\n{entry}\n"))
  (note, ) = registry.notes
  assert note.startswith(str(tmp_path / ".exo" / "models.toml")) and note.endswith("this entry is left out")
  assert re.search(words, note), note
  assert "m" not in registry.cards and "house-8b" in registry.cards


@pytest.mark.parametrize("name", ["Big", "a/b", "a:b", "dummy", "x y", "", "\\u001b[31m"])
def test_line_9_a_name_that_could_not_be_asked_for_is_none(name: str, tmp_path: Path) -> None:
  registry = read_registry(f'["{name}"]\ngguf = "o/n"\n', tmp_path / "models.toml")
  assert registry.cards.keys() == CARDS.keys() and "\x1b" not in registry.notes[0]
  assert "a model's name has small letters" in registry.notes[0]


@pytest.mark.parametrize(("data", "words"), [(b"[m\ngguf = 1", "is no TOML"),
                                             (b"\xff\xfe\x00", "is not written in UTF-8"),
                                             (b"#" * (2**20 + 1), "has more than"),
                                             (b"a = 1", r"[a]: it must be a table")])
def test_line_9_a_broken_file_stops_nothing(
    data: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  write_mine(tmp_path, "")
  (tmp_path / ".exo" / "models.toml").write_bytes(data)
  store = ModelStore(tmp_path)
  assert store.registry.cards.keys() == CARDS.keys() and words in store.registry.notes[0]
  assert store.find("llama-3.2-3b").id == "llama-3.2-3b"
  assert capsys.readouterr().err.count("models.toml") == 1


def test_line_9_a_node_with_a_file_of_its_own_lists_what_is_in_it(tmp_path: Path) -> None:
  home = write_mine(tmp_path, f"{MINE}\n[wrong]\nggguf = 'o/n'\n")
  with ring(home, 1, "--inference-engine", "onnx") as (node, ):
    assert node.get("/v1/models/house-8b")[1]["context_length"] == 32768
    assert node.get("/v1/models/wrong")[0] == 404 and node.log.count("[wrong]: ggguf is no key") == 1
    listed = {entry["id"]: entry for entry in json.loads(exo(home, "models", "--json").stdout)}
    assert listed["house-8b"]["name"] == "The house model" and listed["house-8b"]["context_length"] == 32768
    assert "tools" in listed["house-8b"]["capabilities"] and "wrong" not in listed
    assert "[wrong]: ggguf is no key" in exo(home, "doctor").stdout
