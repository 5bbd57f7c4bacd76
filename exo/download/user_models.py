"""`models.toml` in the folder where exo keeps its settings (`EXO_HOME/.exo`): the user's own names beside those that exo knows.

Each entry is a table with the name of a model, which may be one that exo knows: what the entry says then takes the place of what exo
knows of it. An entry that is wrong is left out, with a sentence that says what is wrong where; all others count.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from exo.log import escape, log
from exo.model_card import FORMATS, HubSource, Kind, ModelCard, is_quantization, parse_repo
from exo.models import BUILT_IN, Registry
from exo.sampling_defaults import SamplingDefaults

FILE = "models.toml"
_MAX_BYTES = 1 << 20
_MOST_CONTEXT, _MOST_LAYERS, _MOST_WEIGHTS = 1 << 30, 512, 10**14
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")
_TYPE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_CAPABILITIES = ("tools", "thinking")
_SHAPE = ("type", "context", "layers", "parameters")
_KEYS = (*FORMATS, "name", "quantizations", "capabilities", "sampling", *_SHAPE)
# the least and the most that makes sense
_SAMPLING = {
    "temperature": (0, 5), "top_p": (0, 1), "top_k": (0, 10**6), "min_p": (0, 1), "repetition_penalty": (0.1, 10)
}


class _WrongError(Exception):
  """What is wrong with an entry, in words that follow its name."""


def registry_in(home: Path) -> Registry:
  """What exo knows and what the user adds to it. Blocks; what is wrong with the file is said in the log, and is in `notes`."""
  path = home / ".exo" / FILE
  try:
    with path.open("rb") as file:
      data = file.read(_MAX_BYTES + 1)
  except FileNotFoundError:
    return BUILT_IN
  except OSError as error:
    return _noted(BUILT_IN.cards, [f"{path} cannot be read ({error.strerror}): the names in it are not known"])
  if len(data) > _MAX_BYTES:
    return _noted(BUILT_IN.cards, [f"{path} has more than {_MAX_BYTES} bytes: the names in it are not known"])
  try:
    return read_registry(data.decode("utf-8-sig"), path)
  except UnicodeDecodeError as error:
    return _noted(BUILT_IN.cards, [f"{path} is not written in UTF-8 ({error.reason}): the names in it are not known"])


def read_registry(text: str, path: Path) -> Registry:
  """`path` is what it is called where something is wrong."""
  try:
    entries = tomllib.loads(text)
  except (tomllib.TOMLDecodeError, RecursionError) as error:
    return _noted(BUILT_IN.cards, [f"{path} is no TOML ({error}): the names in it are not known"])
  cards, notes = dict(BUILT_IN.cards), list[str]()
  for name, entry in entries.items():
    try:
      cards[name] = _card(name, entry, cards.get(name))
    except _WrongError as error:
      notes.append(f"{path}: [{name}]: {error}: this entry is left out")
  return _noted(cards, notes)


def _noted(cards: Mapping[str, ModelCard], notes: list[str]) -> Registry:
  shown = tuple(escape(note) for note in notes)
  for note in shown:
    log(0, "%s", note)
  return Registry(cards, shown)


def _card(name: str, entry: Any, known: ModelCard | None) -> ModelCard:
  """Raises `_WrongError`."""
  if not _NAME.fullmatch(name) or name == "dummy":
    raise _WrongError(
        "a model's name has small letters, digits, dots, hyphens and underscores only, and is not \"dummy\""
    )
  if not isinstance(entry, dict):
    raise _WrongError(f"it must be a table, [{name}] with lines below it")
  if unknown := [key for key in entry if key not in _KEYS]:
    raise _WrongError(f"{unknown[0]} is no key: there are {', '.join(_KEYS)}")
  given = {key: source for key in FORMATS if (source := _repository(entry, key)) is not None}
  if known is None and not given:
    raise _WrongError(f"it names no repository: give one of {', '.join(FORMATS)}")
  card = known or ModelCard(name, name, next(iter(given.values())), repos=given)
  if given:
    card = _with_repositories(card, given)
  card = replace(card, pretty_name=_text(entry, "name") or card.pretty_name)
  if "quantizations" in entry:
    card = replace(card, quantizations=_words(entry, "quantizations", is_quantization, "quantizations as Q4_K_M"))
  if "capabilities" in entry:
    told = _words(entry, "capabilities", _CAPABILITIES.__contains__, f"some of {', '.join(_CAPABILITIES)}")
    card = replace(card, capabilities=told)
  if "sampling" in entry:
    card = replace(card, sampling=_sampling(entry["sampling"]))
  return _shaped(card, entry)


def _with_repositories(card: ModelCard, given: Mapping[str, HubSource]) -> ModelCard:
  """How the files of a repository that is exchanged are packed, and how large they are, is not known any more."""
  packings = {key: packing for key, packing in card.packings.items() if key not in given and key != "wheel"}
  repos = {**card.repos, **given}
  other = replace(card, repos=repos, packings=packings, source=next(iter(given.values())), file_bytes=None)
  return replace(other, quantizations=()) if "gguf" in given else other


def _repository(entry: Mapping[str, Any], key: str) -> HubSource | None:
  text = _text(entry, key)
  if text is None:
    return None
  source = parse_repo(text)
  if source is None or (source.variant is not None and key != "gguf"):
    more = " or org/name:Q4_K_M" if key == "gguf" else ""
    raise _WrongError(f"{key} must be a repository of the hub as org/name, org/name@revision{more}, not {text!r}")
  return source


def _text(entry: Mapping[str, Any], key: str) -> str | None:
  value = entry.get(key)
  if value is not None and not (isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()):
    raise _WrongError(f"{key} must be a short text in quotes")
  return value


def _words(entry: Mapping[str, Any], key: str, is_one: Any, what: str) -> tuple[str, ...]:
  value = entry[key]
  if not isinstance(value, list) or not all(isinstance(word, str) and is_one(word) for word in value):
    raise _WrongError(f"{key} must be a list of {what}")
  return tuple(dict.fromkeys(value))


def _sampling(value: Any) -> SamplingDefaults:
  names = [field.name for field in fields(SamplingDefaults)]
  if not isinstance(value, dict) or not set(value) <= set(names):
    raise _WrongError(f"sampling must be a table with some of {', '.join(names)}")
  for key, number in value.items():
    least, most = _SAMPLING[key]
    kinds = int if key == "top_k" else (int, float)
    if isinstance(number,
                  bool) or not isinstance(number, kinds) or not math.isfinite(number) or not least <= number <= most:
      raise _WrongError(
          f"sampling.{key} must be a{' whole' * (key == 'top_k')} number from {least} to {most}, not {number!r}"
      )
  return SamplingDefaults(**value)


def _shaped(card: ModelCard, entry: Mapping[str, Any]) -> ModelCard:
  """With what the entry says of the model's size, which is of use only if all of it is known."""
  if not any(key in entry for key in _SHAPE):
    return card
  if card.kind is None and (missing := [key for key in _SHAPE if key not in entry]):
    raise _WrongError(f"{', '.join(_SHAPE)} go together: {missing[0]} is missing")
  kind = card.kind or Kind("", 0)
  context = _count(entry, "context", _MOST_CONTEXT, kind.context)
  if "type" in entry:
    model_type = _text(entry, "type") or ""
    if not _TYPE.fullmatch(model_type):
      raise _WrongError(f"type must be a model type as a config.json has it (\"qwen3\"), not {model_type!r}")
    kind = Kind(model_type, context)
  layers = _count(entry, "layers", _MOST_LAYERS, card.layers or 0)
  parameters = _count(entry, "parameters", _MOST_WEIGHTS, card.parameters or 0)
  if parameters != card.parameters or layers != card.layers:
    card = replace(card, file_bytes=None, kv_elements=0, embedding_weights=0)
  return replace(card, kind=replace(kind, context=context), layers=layers, parameters=parameters)


def _count(entry: Mapping[str, Any], key: str, most: int, known: int) -> int:
  value = entry.get(key, known)
  if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
    raise _WrongError(f"{key} must be a whole number from 1 to {most}, not {value!r}")
  return value
