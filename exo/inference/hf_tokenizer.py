"""The tokenizer of a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from exo.errors import ModelFilesError
from exo.inference.backend_vocabulary import BackendVocabulary
from exo.inference.generation_config import read_generation_config
from exo.inference.tokenizer import Tokenizer


def _json(path: Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    value = json.loads(path.read_text("utf-8-sig"))
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
  return _templates(folder, _json(folder / "tokenizer_config.json"))[0]


def _templates(folder: Path, config: dict[str, Any]) -> tuple[str | None, str | None]:
  """(for chats, for chats with tools where that is another one)."""
  default = _text(folder / "chat_template.jinja")
  with_tools = _text(folder / "additional_chat_templates" / "tool_use.jinja")
  if default is not None:
    return default, with_tools
  template = config.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
  if isinstance(template, list):  # several named ones
    template = {
        t["name"]: t.get("template")
        for t in template if isinstance(t, dict) and isinstance(t.get("name"), str)
    }
  if not isinstance(template, dict):
    return (template if isinstance(template, str) else None), with_tools
  named = {name: text for name, text in template.items() if isinstance(text, str)}
  return named.get("default") or next(iter(named.values()), None), named.get("tool_use") or with_tools


def _text(path: Path) -> str | None:
  if not path.is_file():
    return None
  try:
    return path.read_text("utf-8-sig")
  except (OSError, ValueError) as error:
    raise ModelFilesError(f"{path.name} cannot be read: {error}") from error


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
  for source in (read_generation_config(folder)[0], _json(folder / "config.json")):
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
  template, tool_template = _templates(folder, config)
  answers = config.get("response_template")
  return Tokenizer(vocabulary, frozenset(eos), bos_id, add_bos, template, special, tool_template, answers)
