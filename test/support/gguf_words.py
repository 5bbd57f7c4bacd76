"""Vocabularies of GGUF files as the `tokenizers` library reads them: beside what llama.cpp makes of the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from exo.inference.weights.file_bytes import FileBytes
from exo.inference.weights.gguf_header import parse_gguf_header

# GGUF's numbers of token types
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# `tokenizer.ggml.pre`: how the text is cut before pairs are merged, outermost cut first
PRE: dict[str, tuple[str, ...]] = {
    "default": (_GPT2, ),
    "gpt-2": (_GPT2, ),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3, ),
    "qwen2": (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"), ),
}


def metadata_of(path: Path) -> dict[str, Any]:
  """Those of a GGUF file, with the lists of its tokenizer."""
  data = FileBytes(path)
  try:
    return parse_gguf_header(data.head(), data.size, words=True).metadata
  finally:
    data.close()


def backend_of(meta: Mapping[str, Any]) -> tokenizers.Tokenizer:
  tokens: list[str] = meta["tokenizer.ggml.tokens"]
  backend = _byte_level(meta, tokens) if meta["tokenizer.ggml.model"] == "gpt2" else _sentencepiece(meta, tokens)
  kinds = meta.get("tokenizer.ggml.token_type", [])
  backend.add_tokens([
      AddedToken(token, special=kind == CONTROL, normalized=False) for token, kind in zip(tokens, kinds, strict=False)
      if kind in (CONTROL, USER_DEFINED)
  ])
  return backend


def _byte_level(meta: Mapping[str, Any], tokens: list[str]) -> tokenizers.Tokenizer:
  pre, vocabulary = meta.get("tokenizer.ggml.pre", "default"), {token: i for i, token in enumerate(tokens)}
  merges = [tuple(pair.split(" ", 1)) for pair in meta.get("tokenizer.ggml.merges", [])]
  # what would make no word is never merged; llama.cpp takes such a join apart again
  merges = [pair for pair in merges if "".join(pair) in vocabulary]
  backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, ignore_merges="llama" in pre))
  cuts: list[Any] = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in PRE[pre]]
  backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(False, False, use_regex=False)])
  backend.decoder = decoders.ByteLevel()
  return backend


def _sentencepiece(meta: Mapping[str, Any], tokens: list[str]) -> tokenizers.Tokenizer:
  """SentencePiece's BPE: any two neighbours whose join is a word may merge, the best-scored join first."""
  vocabulary = {token: i for i, token in enumerate(tokens)}
  scores, pairs = meta["tokenizer.ggml.scores"], []
  for token, i in vocabulary.items():
    for cut in range(1, len(token)):
      left, right = token[:cut], token[cut:]
      if left in vocabulary and right in vocabulary:
        pairs.append((-scores[i], vocabulary[left], vocabulary[right], left, right))
  pairs.sort(key=lambda pair: pair[:3])
  unknown = tokens[meta.get("tokenizer.ggml.unknown_token_id", 0)]
  backend = tokenizers.Tokenizer(
      models.BPE(vocabulary, [(p[3], p[4]) for p in pairs], unk_token=unknown, fuse_unk=True, byte_fallback=True)
  )
  prefix = bool(meta.get("tokenizer.ggml.add_space_prefix", True))
  steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
  backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
  decode: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  backend.decoder = decoders.Sequence([*decode, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
  return backend


def write_words(path: Path, meta: Mapping[str, Any]) -> Path:
  """A GGUF file with no tensors and these metadata of a tokenizer."""
  writer = gguf.GGUFWriter(path, "llama")
  for key, value in (("block_count", 1), ("embedding_length", 64), ("attention.head_count", 1)):
    writer.add_uint32(f"llama.{key}", value)
  for key, value in meta.items():
    if isinstance(value, bool):
      writer.add_bool(key, value)
    elif isinstance(value, int):
      writer.add_int64(key, value) if value < 0 else writer.add_uint32(key, value)
    elif isinstance(value, float):
      writer.add_float32(key, value)
    elif isinstance(value, str):
      writer.add_string(key, value)
    else:
      writer.add_array(key, value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path
