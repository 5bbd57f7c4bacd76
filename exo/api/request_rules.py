"""What requests must be beyond the types of their fields, for those who read `/openapi.json`: what would be a 400."""

from __future__ import annotations

import copy
from typing import Any

_TEXT = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
# a text, several, token ids, or several lists of these
_PROMPT = {
    "oneOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 64}, _IDS,
              {"type": "array", "items": _IDS, "minItems": 1, "maxItems": 64}]
}  # yapf: disable
_GIVEN = {"not": {"type": "null"}}


def _given_with(field: str, needed: str, value: Any = None) -> dict[str, Any]:
  """Where `field` is given, or has that value, `needed` must be too."""
  asked = _GIVEN if value is None else {"const": value}
  return {
      "if": {"properties": {field: asked}, "required": [field]},
      "then": {"properties": {needed: _GIVEN}, "required": [needed]}
  }


_FORCED = {
    "if": {"properties": {"tool_choice": {"not": {"enum": ["none", "auto", None]}}}, "required": ["tool_choice"]},
    "then": {"properties": {"tools": {"type": "array", "minItems": 1}}, "required": ["tools"]}
}
_STREAMED = {
    "if": {"properties": {"stream_options": _GIVEN}, "required": ["stream_options"]},
    "then": {"properties": {"stream": {"const": True}}, "required": ["stream"]}
}
_ROLES = ["system", "developer", "user", "assistant", "tool", "function"]

# by the name of a component
_RULES: dict[str, dict[str, Any]] = {
    "ChatMessage": {
        "properties": {"role": {"type": "string", "enum": _ROLES}},
        "if": {"properties": {"role": {"enum": ["system", "developer", "user"]}}},
        "then": {"properties": {"content": _GIVEN}, "required": ["content"]}
    },
    "ContentPart": {"properties": {"type": {"const": "text"}, "text": {"type": "string"}}, "required": ["type", "text"]},
    "ChatCompletionRequest": {"allOf": [_FORCED, _STREAMED, _given_with("top_logprobs", "logprobs")]},
    "CompletionRequest": {"properties": {"prompt": _PROMPT}, "allOf": [_STREAMED]},
    "EmbeddingRequest": {"properties": {"input": _PROMPT}},
    "CountTokensRequest": {"allOf": [_FORCED]},
    "MessagesRequest": {"allOf": [_FORCED]},
    "OllamaModelRequest": {
        "anyOf": [{"properties": {name: _TEXT}, "required": [name]} for name in ("model", "name")]
    },
    "OllamaCopyRequest": {"properties": {"source": _TEXT, "destination": {"type": "string", "pattern": "^[^\\s=*]{1,200}$"}}},
    "OllamaMessage": {"properties": {"role": {"type": "string", "enum": _ROLES}, "images": {"enum": [None, []]}}},
    "OllamaEmbedRequest": {
        "properties": {"input": {"oneOf": [{"type": "string"}, {"type": "array", "items": _TEXT, "maxItems": 64}]}}
    },
}  # yapf: disable


def with_rules(components: dict[str, Any]) -> dict[str, Any]:
  """The components with what is said here of them."""
  out = copy.deepcopy(components)
  for name, rules in _RULES.items():
    if name in out:
      own = out[name].setdefault("properties", {})
      for field, rule in rules.get("properties", {}).items():
        own[field] = rule
      out[name] |= {key: value for key, value in rules.items() if key not in ("properties", "required")}
      out[name]["required"] = sorted({*out[name].get("required", ()), *rules.get("required", ())})
  return out
