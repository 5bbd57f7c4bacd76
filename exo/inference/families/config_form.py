"""`config.json` in one form, whichever it is published in: as on the hub for years, as transformers 5 writes it, a language model within
a larger one's configuration, and with what its authors left out because it is what their class assumes (`defaults.json`, made by
scripts/families/config_defaults.py).

The form has the keys of all: a reader finds `rope_parameters` as well as `rope_theta` and `rope_scaling`, and a value under each of
its names. No key that is there is changed but for those that a family's `older_words` give.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from exo.inference.families.catalogue import family_of_type

_TAG = "__float__"  # how transformers writes what JSON has no word for
_TAGGED = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
_DEEPEST = 8
Config = dict[str, Any]


@cache
def _types() -> Mapping[str, Mapping[str, Any]]:
  found: Mapping[str, Mapping[str, Any]] = json.loads((Path(__file__).parent / "defaults.json").read_text())["types"]
  return found


def text_type_of(model_type: str) -> str:
  """The type of the language model within a larger one, where the configuration does not say; the type itself for others."""
  return str(_types().get(model_type, {}).get("text") or model_type)


def is_described(model_type: str) -> bool:
  """Whether something is known here of models of this type."""
  return model_type in _types() or family_of_type(model_type) is not None


def one_form(config: Mapping[str, Any]) -> Config:
  """The configuration with its values under all names, what was left out filled in. Values that are not of the kind that they should be
  stay as they are, for whoever reads them."""
  found: Config = _untagged(dict(config), _DEEPEST)
  kind = found.get("model_type")
  inner = text_type_of(kind) if isinstance(kind, str) else ""
  text = found.get("text_config")
  if isinstance(text, dict):
    text.setdefault("model_type", inner)
    found["text_config"] = _filled(text, str(text["model_type"]), found)
    return found
  return _filled(found, inner, {})


def _untagged(value: Any, deepest: int) -> Any:
  if not deepest:
    return value
  if isinstance(value, Mapping):
    if value.keys() == {_TAG} and value[_TAG] in _TAGGED:
      return _TAGGED[value[_TAG]]
    return {key: _untagged(part, deepest - 1) for key, part in value.items()}
  return [_untagged(part, deepest - 1) for part in value] if isinstance(value, list) else value


def _filled(text: Config, model_type: str, around: Mapping[str, Any]) -> Config:
  """`around` is the configuration that this one stands in: what that says is not filled in."""
  known = _types().get(model_type, {})
  names: Mapping[str, str] = known.get("names", {})
  _under_all_names(text, names)
  for key, value in known.get("left_out", {}).items():
    if key not in around:
      text.setdefault(key, value)
  _under_all_names(text, names)
  _with_both_ropes(text, known.get("rope_theta"))
  family = family_of_type(model_type)
  if family is not None and family.older_words is not None:
    text |= family.older_words(text)
  return text


def _under_all_names(text: Config, names: Mapping[str, str]) -> None:
  for one, other in names.items():
    if one in text and other not in text:
      text[other] = text[one]
    elif other in text and one not in text:
      text[one] = text[other]


def _with_both_ropes(text: Config, theta: Any) -> None:
  """Newer configurations have the rotary embedding's parameters in one place, by kind of layer where they differ."""
  newer = text.get("rope_parameters")
  if isinstance(newer, dict):
    nested = any(isinstance(value, dict) for value in newer.values())
    full = newer.get("full_attention") if nested else newer
    full = full if isinstance(full, dict) else {}
    if "rope_theta" in full:
      text.setdefault("rope_theta", full["rope_theta"])
    local = newer.get("sliding_attention") if nested else None
    if isinstance(local, dict) and "rope_theta" in local:
      text.setdefault("rope_local_base_freq", local["rope_theta"])
    if full.get("rope_type", "default") != "default":
      text.setdefault("rope_scaling", {key: value for key, value in full.items() if key != "rope_theta"})
    if "partial_rotary_factor" in full:
      text.setdefault("partial_rotary_factor", full["partial_rotary_factor"])
  if isinstance(theta, Mapping):
    text.setdefault("rope_theta", theta.get("global"))
    text.setdefault("rope_local_base_freq", theta.get("local"))
  elif theta is not None:
    text.setdefault("rope_theta", theta)
  text.setdefault("rope_scaling", None)
