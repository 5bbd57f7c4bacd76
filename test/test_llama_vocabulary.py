"""llama.cpp makes tokens of texts whose way of being cut only it knows, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest

from exo.errors import EngineError, ModelFilesError
from exo.inference.backend_vocabulary import BackendVocabulary
from exo.inference.gguf_tokenizer import gguf_tokenizer
from exo.inference.llama_cpp import library_choice, vocabulary
from exo.inference.llama_cpp.library_file import library_files
from exo.inference.llama_cpp.vocabulary import LlamaVocabulary
from exo.inference.tokenizer import TooManyTokensError
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from test.support.gguf_words import PRE, UNUSED, backend_of, metadata_of, write_words
from test.support.models import fetch_gemma
from test.support.nodes import ROOT, wait_until

pytestmark = pytest.mark.skipif(next(library_files(), None) is None, reason="xllamacpp is not installed")

TEXTS = (
    "", "Hello world, 12345 times!", "  lead  and trail  ", "Ünïcödé 日本語 😀👍🏽\n\n\ttabs", "don't WON'T 3.14 1,000,000",
    "<|im_start|>user\nhi<|im_end|>\n", "<start_of_turn>user\nhi<end_of_turn>\n", (ROOT / "README.md").read_text()
)


@pytest.fixture
def cut_otherwise(smollm2: Checkpoint, tmp_path: Path) -> Path:
  """The words of SmolLM2, and texts cut as GPT-4o's: numbers by threes."""
  of, writer = metadata_of(smollm2.path), gguf.GGUFWriter(tmp_path / "model.gguf", "granite")
  for key, value in (("block_count", 1), ("embedding_length", 64), ("attention.head_count", 1)):
    writer.add_uint32(f"granite.{key}", value)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("gpt-4o")
  for key in ("tokens", "merges"):
    writer.add_array(f"tokenizer.ggml.{key}", of[f"tokenizer.ggml.{key}"])
  writer.add_array("tokenizer.ggml.token_type", of["tokenizer.ggml.token_type"])
  writer.add_eos_token_id(of["tokenizer.ggml.eos_token_id"])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return tmp_path / "model.gguf"


def alike(own: LlamaVocabulary, meta: Mapping[str, Any]) -> None:
  """What is made of texts, and what tokens are."""
  other = BackendVocabulary(backend_of(meta))
  for text in TEXTS:
    assert own.ids(text) == other.ids(text)
    assert own.text(own.ids(text)) == other.text(own.ids(text))
  unused = {i for i, kind in enumerate(meta["tokenizer.ggml.token_type"]) if kind == UNUSED}  # no bytes, for llama.cpp
  assert own.size == other.size and other.special <= own.special <= other.special | own.end_ids
  assert own.stripped_spaces == other.stripped_spaces and other.joins_bytes
  for i in {*range(0, own.size, 7), *range(300), *own.special} - unused:
    assert own.token_bytes(i) == other.token_bytes(i)
  for name in ("<|im_end|>", "<end_of_turn>", "the", "no such token"):
    written = other.id_of(name)
    assert own.id_of(name) == written or written is None
  names = {own.token_bytes(i).decode("utf-8", "replace") for i in own.special} - {""}
  assert own.ids_of(sorted(names)) == {name: i for name in names if (i := other.id_of(name)) is not None}


def test_07_the_names_of_thousands_of_special_tokens_are_found_in_one_pass(
    model_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Asked for one by one, Gemma's took the best part of a minute before its first chat."""
  tokenizer, passes, found = open_checkpoint(fetch_gemma(model_home)).tokenizer(), [], LlamaVocabulary.ids_of
  monkeypatch.setattr(LlamaVocabulary, "ids_of", lambda self, names: passes.append(1) or found(self, names))
  assert len(tokenizer.special_names) > 6000 and len(passes) == 1


@pytest.mark.parametrize("name", ["smollm2", "gemma"])
def test_issue_19_its_tokens_are_those_of_the_library_that_reads_known_vocabularies(
    name: str, smollm2: Checkpoint, model_home: Path
) -> None:
  checkpoint = smollm2 if name == "smollm2" else open_checkpoint(fetch_gemma(model_home))
  alike(LlamaVocabulary(checkpoint.path), metadata_of(checkpoint.path))


def test_issue_19_a_vocabulary_that_only_it_knows_is_used_as_any(cut_otherwise: Path) -> None:
  tokenizer = open_checkpoint(cut_otherwise).tokenizer()
  assert "gpt-4o" not in PRE
  for text in TEXTS:
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
  assert tokenizer.encode("<|im_end|>") == [2] and {0, 2} <= tokenizer.eos_ids
  stream = tokenizer.detokenizer()
  assert "".join([stream.push([i]) for i in tokenizer.encode("日本語 😀")] + [stream.finish()]) == "日本語 😀"
  with pytest.raises(TooManyTokensError):
    tokenizer.encode_within("word " * 100_000, 1000)
  assert len(tokenizer.encode_within("word " * 500, 1000)) <= 1000
  assert tokenizer.encode_chat([{"role": "user", "content": json.dumps({"a": 1})}])


def test_issue_19_a_long_text_without_a_cut_is_no_end_of_the_process(cut_otherwise: Path) -> None:
  """The C++ library's regular expressions call themselves for every character: 8 MB of stack were not enough."""
  tokenizer = open_checkpoint(cut_otherwise).tokenizer()
  pid = vocabulary._process().pid
  for unit in ("a", " ", "日", "\n"):
    text = unit * 200_000
    assert tokenizer.decode(tokenizer.encode(text)) == text
  assert vocabulary._process().pid == pid


def test_issue_19_without_it_a_vocabulary_is_refused_with_what_to_install(
    cut_otherwise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  vocabulary._only_process.cache_clear()
  monkeypatch.setattr(library_choice, "library_files", lambda named: iter(()))
  with pytest.raises(ModelFilesError, match=r"reads the words of GGUF files.*pip install xllamacpp"):
    open_checkpoint(cut_otherwise).tokenizer()


def test_issue_19_a_vocabulary_that_nobody_knows_is_an_error_in_words(smollm2: Checkpoint, tmp_path: Path) -> None:
  with pytest.raises(ModelFilesError, match=r"missing\.gguf cannot be read"):
    LlamaVocabulary(tmp_path / "missing.gguf")
  (tmp_path / "odd.gguf").write_bytes(b"GGUF, or something like it")
  with pytest.raises(ModelFilesError, match=r"llama\.cpp does not read the vocabulary of odd\.gguf"):
    LlamaVocabulary(tmp_path / "odd.gguf")


STRANGE: tuple[Any, ...] = ("x", "gpt-2", ["a"], [0.5], [7], [-1000000, 1], float("nan"), -256, 2**31, True, 0)
KEYS = ("model", "pre", "tokens", "token_type", "merges", "scores", "eos_token_id", "bos_token_id", "eot_token_id")


@pytest.mark.parametrize("key", [*KEYS, "add_bos_token", "add_space_prefix", "chat_template"])
def test_issue_19_whatever_a_vocabulary_says_is_read_or_refused_in_words(key: str, tmp_path: Path) -> None:
  """Of both kinds, on disk: what a strange one does to llama.cpp is the end of its process at worst."""
  words = ["<s>", "</s>", "a", "b", "ab", "Ġ", "▁"]
  meta = {
      "tokenizer.ggml.tokens": words, "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1, 1], "tokenizer.ggml.merges": ["a b"],
      "tokenizer.ggml.scores": [0.0, 0.0, -1.0, -1.0, -2.0, -3.0, -3.0], "tokenizer.ggml.bos_token_id": 0,
      "tokenizer.ggml.eos_token_id": 1
  }  # yapf: disable
  name = f"tokenizer.{'' if key == 'chat_template' else 'ggml.'}{key}"
  for kind in ("gpt2", "llama"):
    for value in STRANGE:
      strange = meta | {"tokenizer.ggml.model": kind, "tokenizer.ggml.pre": "default"} | {name: value}
      path = write_words(tmp_path / f"{kind}.gguf", strange)
      try:
        tokenizer = gguf_tokenizer(strange, path)
        ids = tokenizer.encode("ab a<s>", add_bos=True)
      except (ModelFilesError, EngineError) as error:
        assert len(error.message) > 10, (kind, value)
        continue
      assert all(0 <= i < tokenizer.vocab_size for i in (*ids, *tokenizer.eos_ids)), (kind, value, ids)
      assert tokenizer.decode(ids) is not None


def test_issue_19_a_process_that_ends_takes_no_text_along(smollm2: Checkpoint) -> None:
  own = LlamaVocabulary(smollm2.path)
  expected = own.ids(TEXTS[1])
  process = vocabulary._process()
  assert process.pid is not None
  os.kill(process.pid, signal.SIGSTOP)
  waiting = process.call("ids", str(smollm2.path), TEXTS[1])
  os.kill(process.pid, signal.SIGKILL)
  with pytest.raises(Exception, match="ended"):
    waiting.result(10)
  wait_until(lambda: process.pid is None, 10, "the end of the process")
  assert own.ids(TEXTS[1]) == expected


def test_issue_19_a_process_that_does_not_answer_is_ended(smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
  own = LlamaVocabulary(smollm2.path)
  process = vocabulary._process()
  assert process.pid is not None
  os.kill(process.pid, signal.SIGSTOP)
  monkeypatch.setattr(vocabulary, "_TIMEOUT_S", 0.5)
  with pytest.raises(EngineError, match="has not read a text within"):
    own.ids("text")
  monkeypatch.setattr(vocabulary, "_TIMEOUT_S", 30.0)
  assert own.ids("text")
