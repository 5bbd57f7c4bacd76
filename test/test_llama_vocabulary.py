"""llama.cpp makes tokens of texts whose way of being cut only it knows, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import gguf
import pytest

from exo.errors import EngineError, ModelFilesError
from exo.inference.llama_cpp import library_choice, vocabulary
from exo.inference.llama_cpp.library_file import library_files
from exo.inference.llama_cpp.vocabulary import LlamaVocabulary
from exo.inference.tokenizer import TooManyTokensError
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.inference.weights.gguf_file import GgufFile
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
  assert isinstance(smollm2, GgufFile)
  of, writer = smollm2.header.metadata, gguf.GGUFWriter(tmp_path / "model.gguf", "granite")
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


@pytest.mark.parametrize("name", ["smollm2", "gemma"])
def test_issue_19_its_tokens_are_those_of_the_library_that_reads_known_vocabularies(
    name: str, smollm2: Checkpoint, model_home: Path
) -> None:
  checkpoint = smollm2 if name == "smollm2" else open_checkpoint(fetch_gemma(model_home))
  own, other = LlamaVocabulary(checkpoint.path), checkpoint.tokenizer()
  for text in TEXTS:
    assert own.ids(text) == other.encode(text)
  assert other.eos_ids <= own.eos_ids


def test_issue_19_a_vocabulary_that_only_it_knows_is_used_as_any(cut_otherwise: Path) -> None:
  tokenizer = open_checkpoint(cut_otherwise).tokenizer()
  assert tokenizer.text_ids is not None
  for text in TEXTS:
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
  assert tokenizer.encode("<|im_end|>") == [2] and {0, 2} <= tokenizer.eos_ids
  stream = tokenizer.detokenizer()
  assert "".join([stream.push([i]) for i in tokenizer.encode("日本語 😀")] + [stream.finish()]) == "日本語 😀"
  with pytest.raises(TooManyTokensError):
    tokenizer.encode_within("word " * 100_000, 1000)
  assert len(tokenizer.encode_within("word " * 500, 1000)) <= 1000
  assert tokenizer.encode_chat([{"role": "user", "content": json.dumps({"a": 1})}])


def test_issue_19_without_it_a_strange_vocabulary_is_refused_with_what_to_install(
    cut_otherwise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  vocabulary._only_process.cache_clear()
  monkeypatch.setattr(library_choice, "library_files", lambda named: iter(()))
  with pytest.raises(ModelFilesError, match=r"named 'gpt-4o'.*pip install xllamacpp"):
    open_checkpoint(cut_otherwise).tokenizer()


def test_issue_19_a_vocabulary_that_nobody_knows_is_an_error_in_words(smollm2: Checkpoint, tmp_path: Path) -> None:
  with pytest.raises(ModelFilesError, match=r"missing\.gguf cannot be read"):
    LlamaVocabulary(tmp_path / "missing.gguf")
  (tmp_path / "odd.gguf").write_bytes(b"GGUF, or something like it")
  with pytest.raises(ModelFilesError, match=r"llama\.cpp does not read the vocabulary of odd\.gguf"):
    LlamaVocabulary(tmp_path / "odd.gguf")


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
