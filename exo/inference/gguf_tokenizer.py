"""The tokenizer that a GGUF file carries in its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from exo.errors import EngineError, EngineUnavailableError, ModelFilesError
from exo.inference.tokenizer import Tokenizer

if TYPE_CHECKING:
  from exo.inference.llama_cpp.vocabulary import LlamaVocabulary

# GGUF's numbers of token types
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# `tokenizer.ggml.pre`: how the text is cut before pairs are merged, outermost cut first
_PRE: dict[str, tuple[str, ...]] = {
    "default": (_GPT2, ),
    "gpt-2": (_GPT2, ),
    "phi-2": (_GPT2, ),
    "olmo": (_GPT2, ),
    "smollm": (r"\p{N}", _GPT2),
    "starcoder": (r"\p{N}", _GPT2),
    "refact": (r"\p{N}", _GPT2),
    "command-r": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3, ),
    "llama3": (_LLAMA3, ),
    "llama-v3": (_LLAMA3, ),
    "dbrx": (_LLAMA3, ),
    "smaug-bpe": (_LLAMA3, ),
    "falcon3": (_LLAMA3, ),
    "qwen2": (_QWEN2, ),
    "deepseek-r1-qwen": (_QWEN2, ),
    "stablelm2": (_QWEN2, ),
    "tekken": (_TEKKEN, ),
}


def _cuts(meta: Mapping[str, Any]) -> str:
  """By which name the file's texts are cut."""
  return str(meta.get("tokenizer.ggml.pre", "default"))


def _byte_level_words(tokens: list[str]) -> tokenizers.Tokenizer:
  """What the tokens are called, and no way to find them in a text."""
  backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(False, False, use_regex=False)
  backend.decoder = decoders.ByteLevel()
  return backend


def _byte_level_bpe(meta: Mapping[str, Any], tokens: list[str], file_name: str) -> tokenizers.Tokenizer:
  merges = [tuple(pair.split(" ", 1)) for pair in meta.get("tokenizer.ggml.merges", [])]
  if any(len(pair) != 2 for pair in merges):
    raise ModelFilesError(f"{file_name}: its tokenizer's merges are malformed")
  pre = _cuts(meta)
  vocabulary = {token: i for i, token in enumerate(tokens)}
  # what would make no word is never merged; llama.cpp takes such a join apart again
  merges = [pair for pair in merges if "".join(pair) in vocabulary]
  backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, ignore_merges="llama" in pre))
  cuts: list[Any] = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in _PRE[pre]]
  backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(False, False, use_regex=False)])
  backend.decoder = decoders.ByteLevel()
  return backend


def _sentencepiece_bpe(meta: Mapping[str, Any], tokens: list[str]) -> tokenizers.Tokenizer:
  """SentencePiece's BPE: any two neighbours whose join is a word may merge, the best-scored join first."""
  vocabulary = {token: i for i, token in enumerate(tokens)}
  scores = meta.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
  pairs = []
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
  steps: list[Any] = [normalizers.Replace(" ", "▁")]
  prefix = bool(meta.get("tokenizer.ggml.add_space_prefix", True))
  if prefix:
    steps.insert(0, normalizers.Prepend("▁"))
  backend.normalizer = normalizers.Sequence(steps)
  decode: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  if prefix:
    decode.append(decoders.Strip(" ", 1, 0))
  backend.decoder = decoders.Sequence(decode)
  return backend


def gguf_tokenizer(meta: Mapping[str, Any], path: Path) -> Tokenizer:
  """Of the file at `path`. Where only llama.cpp knows how its texts are cut, that cuts them.

  Raises `ModelFilesError` for a kind that is not known, rather than cutting text wrongly."""
  file_name = path.name
  tokens = meta.get("tokenizer.ggml.tokens")
  if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
    raise ModelFilesError(f"{file_name} carries no tokenizer")
  kind = meta.get("tokenizer.ggml.model")
  if kind not in ("gpt2", "llama"):
    raise ModelFilesError(
        f"{file_name} carries a tokenizer of kind {kind!r}, which exo does not know (gpt2, llama are)"
    )
  native = _by_llama_cpp(path, _cuts(meta)) if kind == "gpt2" and _cuts(meta) not in _PRE else None
  try:
    if native is not None:
      backend = _byte_level_words(tokens)
    elif kind == "gpt2":
      backend = _byte_level_bpe(meta, tokens, file_name)
    else:
      backend = _sentencepiece_bpe(meta, tokens)
  except ModelFilesError:
    raise
  except Exception as error:
    raise ModelFilesError(f"{file_name}: the parts of its tokenizer do not belong together: {error}") from error
  types = meta.get("tokenizer.ggml.token_type") or []
  if not isinstance(types, list):
    raise ModelFilesError(f"{file_name}: the kinds of its tokens are no list")
  added = [(token, token_type) for token, token_type in zip(tokens, types, strict=False)
           if token_type in (_CONTROL, _USER_DEFINED)]
  backend.add_tokens([
      AddedToken(token, special=token_type == _CONTROL, normalized=False) for token, token_type in added
  ])

  special, ids = {}, {}
  for key, name in (("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")):
    token_id = meta.get(f"tokenizer.ggml.{key}_token_id")
    if isinstance(token_id, int) and 0 <= token_id < len(tokens):
      special[name], ids[key] = tokens[token_id], token_id
  eos = {ids["eos"]} if "eos" in ids else set()
  eos |= {
      v
      for key in ("eot", "eom")
      if isinstance(v := meta.get(f"tokenizer.ggml.{key}_token_id"), int) and 0 <= v < len(tokens)
  }
  # chat models end a turn with a token that older files do not name as such
  vocabulary = {token: i for i, token in enumerate(tokens)}
  eos |= {vocabulary[t] for t in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>") if t in vocabulary}
  if native is not None:
    eos |= native.eos_ids
  template = meta.get("tokenizer.chat_template")
  # SentencePiece models begin a text with their BOS unless they say otherwise
  add_bos = bool(meta.get("tokenizer.ggml.add_bos_token", kind == "llama"))
  return Tokenizer(
      backend, frozenset(eos), ids.get("bos"), add_bos, template if isinstance(template, str) else None, special,
      None if native is None else native.ids
  )


def _by_llama_cpp(path: Path, pre: str) -> LlamaVocabulary:
  from exo.inference.llama_cpp.vocabulary import LlamaVocabulary
  try:
    return LlamaVocabulary(path)
  except EngineUnavailableError as error:
    raise ModelFilesError(
        f"{path.name}: its tokenizer cuts text in a way named {pre!r}, which llama.cpp knows: {error.message}"
    ) from error
  except EngineError as error:
    raise ModelFilesError(f"{path.name}: its tokenizer cannot be read: {error.message}") from error
