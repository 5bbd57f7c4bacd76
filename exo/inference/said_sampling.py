"""What a model's files say of how its answers should be drawn: wishes of its makers, without which it runs as well, so that nothing in
them is an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from exo.sampling_defaults import BOUNDS, SILENT, SamplingDefaults, is_possible

_GGUF = "general.sampling."
_GGUF_NAMES = {
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True, slots=True)
class SaidSampling:
  """`ignored` names what was no possible value, in words."""
  defaults: SamplingDefaults = SILENT
  ignored: tuple[str, ...] = ()


def said_by_generation_config(config: Mapping[str, Any]) -> SaidSampling:
  """As transformers reads `generation_config.json`, which writes nothing that equals its own defaults: `do_sample` true without a
  temperature, or without `top_p`, means 1 (Gemma 3 and gpt-oss are published so), false means the likeliest tokens.
  """
  said = _read({name: (name, config.get(name)) for name in BOUNDS})
  does_sample = config.get("do_sample")
  if does_sample is False:
    return replace(said, defaults=replace(said.defaults, temperature=0.0))
  if does_sample is True:
    absent: dict[str, Any] = {name: 1.0 for name in ("temperature", "top_p") if config.get(name) is None}
    return replace(said, defaults=replace(said.defaults, **absent))
  return said if does_sample is None else replace(said, ignored=(*said.ignored, _shown("do_sample", does_sample)))


def said_by_gguf(metadata: Mapping[str, Any]) -> SaidSampling:
  """In llama.cpp's words. A penalty for what was said in the last 0 tokens is none; one for the last N is exo's for all of them."""
  found = {name: (_GGUF + key, metadata.get(_GGUF + key)) for key, name in _GGUF_NAMES.items()}
  # numbers stand there in 32 bits: 0.6 is to be the 0.6 that the same model's generation_config.json has
  said = _read({
      name: (key, round(value, 6) if isinstance(value, float) else value)
      for name, (key, value) in found.items()
  })
  reach = metadata.get(f"{_GGUF}penalty_last_n")
  has_none = isinstance(reach, int) and not isinstance(reach, bool) and reach == 0
  return replace(said, defaults=replace(said.defaults, repetition_penalty=1.0)) if has_none else said


def _read(found: Mapping[str, tuple[str, Any]]) -> SaidSampling:
  """`found` has each field's name in the file and its value, None for none."""
  said: dict[str, Any] = {}
  ignored: list[str] = []
  for name, (key, value) in found.items():
    if value is None:
      continue
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_possible(name, value):
      ignored.append(_shown(key, value))
    elif name != "top_k":
      said[name] = float(value)
    elif value == int(value):
      said[name] = int(value)
    else:
      ignored.append(_shown(key, value))
  return SaidSampling(SamplingDefaults(**said), tuple(ignored))


def _shown(key: str, value: Any) -> str:
  return f"{key} {value!r:.40}" if isinstance(value, str | int | float) else f"{key}, which is no number"
