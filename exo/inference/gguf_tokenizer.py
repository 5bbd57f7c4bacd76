"""The tokenizer that a GGUF file carries in its metadata: llama.cpp's own vocabulary, and the file's template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exo.errors import EngineError, EngineUnavailableError, ModelFilesError
from exo.inference.llama_cpp.vocabulary import LlamaVocabulary
from exo.inference.tokenizer import Tokenizer

_NAMED = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def gguf_tokenizer(meta: Mapping[str, Any], path: Path) -> Tokenizer:
  """Of the file at `path`, with these metadata. Raises `ModelFilesError` for what llama.cpp cannot read, or where it cannot be used."""
  try:
    vocabulary = LlamaVocabulary(path)
  except EngineUnavailableError as error:
    raise ModelFilesError(f"{path.name}: llama.cpp reads the words of GGUF files: {error.message}") from error
  except EngineError as error:
    raise ModelFilesError(f"{path.name}: its tokenizer cannot be read: {error.message}") from error
  special, ids = {}, {}
  for key, name in _NAMED.items():
    token_id = meta.get(f"tokenizer.ggml.{key}_token_id")
    if isinstance(token_id, int) and not isinstance(token_id, bool) and 0 <= token_id < vocabulary.size:
      ids[key], special[name] = token_id, vocabulary.token_bytes(token_id).decode("utf-8", "replace")
  template, with_tools = (
      text if isinstance(text := meta.get(f"tokenizer.chat_template{name}"), str) else None
      for name in ("", ".tool_use")
  )
  # the BOS is one that the file names: llama.cpp has a number for those that name none
  return Tokenizer(vocabulary, vocabulary.end_ids, ids.get("bos"), vocabulary.add_bos, template, special, with_tools)
