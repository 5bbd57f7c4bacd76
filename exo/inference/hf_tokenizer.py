"""The tokenizer of a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from exo.errors import ModelFilesError
from exo.inference.backend_vocabulary import BackendVocabulary
from exo.inference.tokenizer import Tokenizer


def _json(path: Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    value = json.loads(path.read_text("utf-8"))
  except (ValueError, OSError) as error:
    raise ModelFilesError(f"{path.name} is not valid JSON: {error}") from error
  return value if isinstance(value, dict) else {}


def _content(token: Any) -> str | None:
  """A special token stands as a string or as an object with `content`."""
  if isinstance(token, dict):
    token = token.get("content")
  return token if isinstance(token, str) else None


def chat_template_of(folder: Path) -> str | None:
  """A Hugging Face folder's own, where it has one. Raises `ModelFilesError`."""
  return _template(folder, _json(folder / "tokenizer_config.json"))


def _template(folder: Path, config: dict[str, Any]) -> str | None:
  separate = folder / "chat_template.jinja"
  if separate.is_file():
    try:
      return separate.read_text("utf-8")
    except (OSError, ValueError) as error:
      raise ModelFilesError(f"chat_template.jinja cannot be read: {error}") from error
  template = config.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
  if isinstance(template, list):  # several named ones
    named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
    template = named.get("default") or next(iter(named.values()), None)
  return template if isinstance(template, str) else None


def _backend(folder: Path) -> tokenizers.Tokenizer:
  fast = folder / "tokenizer.json"
  if fast.is_file():
    try:
      return tokenizers.Tokenizer.from_file(str(fast))
    except Exception as error:
      raise ModelFilesError(f"tokenizer.json cannot be read: {error}") from error
  # SentencePiece and the like: transformers knows how to convert them; it is heavy, hence not the first choice
  from transformers import AutoTokenizer
  try:
    loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
  except (OSError, ValueError, ImportError, KeyError) as error:
    raise ModelFilesError(f"{folder.name} holds no tokenizer that can be read: {error}") from error
  backend = getattr(loaded, "backend_tokenizer", None)
  if not isinstance(backend, tokenizers.Tokenizer):
    raise ModelFilesError(f"{folder.name} has a tokenizer without a fast form, which exo cannot use")
  return backend


def hf_tokenizer(folder: Path) -> Tokenizer:
  """From `tokenizer.json` (or what transformers can convert) and the configuration files beside it."""
  backend = _backend(folder)
  backend.no_truncation()
  backend.no_padding()
  config = _json(folder / "tokenizer_config.json")
  named = _json(folder / "special_tokens_map.json") | config
  special = {
      key: text
      for key in ("bos_token", "eos_token", "unk_token", "pad_token") if (text := _content(named.get(key))) is not None
  }
  eos: set[int] = set()
  for source in (_json(folder / "generation_config.json"), _json(folder / "config.json")):
    value = source.get("eos_token_id")
    eos.update(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int))
  if "eos_token" in special and (eos_id := backend.token_to_id(special["eos_token"])) is not None:
    eos.add(eos_id)
  bos_id = backend.token_to_id(special["bos_token"]) if "bos_token" in special else None
  if bos_id is None:
    add_bos = False
  elif "add_bos_token" in config:
    add_bos = bool(config["add_bos_token"])
  else:  # newer folders say it in the post-processor alone
    add_bos = backend.encode("", add_special_tokens=True).ids[:1] == [bos_id]
  vocabulary = BackendVocabulary(backend)
  return Tokenizer(vocabulary, frozenset(eos), bos_id, add_bos, _template(folder, config), special)
