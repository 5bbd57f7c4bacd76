"""What requests must be beyond the types of their fields, for those who read `/openapi.json`: what would be a 400."""

from __future__ import annotations

import copy
from typing import Any

from exo.api.item_rules import ADDED_ITEMS, INPUT, ITEMS, of_kind

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
_ONE_FORM = {"not": {"properties": {"functions": _GIVEN, "tools": _GIVEN}, "required": ["functions", "tools"]}}
_KEPT = {
    "if": {"properties": {"keep_running": {"const": True}}, "required": ["keep_running"]},
    "then": {"properties": {"stream": {"const": True}}, "required": ["stream"]}
}
_ROLES = ["system", "developer", "user", "assistant", "tool", "function"]
_HOSTED = ["web_search", "file_search", "code_interpreter", "image_generation", "mcp", "computer_use"]
_TEXTS = {
    "type": "array", "minItems": 1, "maxItems": 64,
    "items": {"oneOf": [_TEXT, {"type": "object", "properties": {"text": _TEXT}, "required": ["text"]}]}
}
_TEXT_OR_TEXTS = {"oneOf": [_TEXT, _TEXTS]}
_OF_SCHEMA = {
    "oneOf": [{"type": "null"}, {
        "type": "object", "required": ["schema"], "properties": {
            "schema": {"type": "object", "properties": {"type": {"const": "object"}}}
        }
    }]
}  # yapf: disable
_SOME_SCHEMA = {
    "oneOf": [{"type": "null"}, {"const": True}, {"type": "object"},
              {"type": "string", "contentMediaType": "application/json"}]
}  # yapf: disable
_DOCUMENT = {
    "type": "object", "properties": {"type": {"const": "text"}, "data": {"type": "string"}},
    "required": ["type", "data"]
}
_ANY_KIND = {"type": "object", "properties": {"type": {"type": "string"}}, "required": ["type"]}
_PAIRS = [("text_1", "text_2"), ("queries", "documents")]


def _undone(*neutral: Any) -> dict[str, Any]:
  return {"enum": [None, *neutral]}


def _found(kind: str) -> dict[str, Any]:
  """A block whose content is a text, or blocks of text, or nothing."""
  texts = {"type": "array", "items": of_kind("text", text={"type": "string"}, needed=("text", ))}
  content = {"oneOf": [{"type": ["string", "null"]}, texts]}
  return {"properties": {"type": {"const": kind}, "content": content}, "required": ["type"]}


def _has(field: str) -> dict[str, Any]:
  return {"properties": {field: _GIVEN}, "required": [field]}


def _one_of_fields(*fields: str, value: Any) -> dict[str, Any]:
  """One of these fields has `value`, the others are not given."""
  return {
      "oneOf": [{
          "properties": {field: value} | {other: {"type": "null"}
                                          for other in fields if other != field}, "required": [field]
      } for field in fields]
  }


# by the name of a component
_RULES: dict[str, dict[str, Any]] = {
    "ChatMessage": {
        "properties": {"role": {"type": "string", "enum": _ROLES}},
        "if": {"properties": {"role": {"enum": ["system", "developer", "user"]}}},
        "then": {"properties": {"content": _GIVEN}, "required": ["content"]}
    },
    "ContentPart": {"properties": {"type": {"const": "text"}, "text": {"type": "string"}}, "required": ["type", "text"]},
    "ChatCompletionRequest": {"allOf": [_FORCED, _STREAMED, _KEPT, _given_with("top_logprobs", "logprobs"), _ONE_FORM]},
    "CompletionRequest": {"properties": {"prompt": _PROMPT}, "allOf": [_STREAMED]},
    "EmbeddingRequest": {"properties": {"input": _PROMPT}},
    "CountTokensRequest": {"allOf": [_FORCED]},
    "OllamaModelRequest": {
        "anyOf": [{"properties": {name: _TEXT}, "required": [name]} for name in ("model", "name")]
    },
    "OllamaCopyRequest": {"properties": {"source": _TEXT, "destination": {"type": "string", "pattern": "^[^\\s=*]{1,200}$"}}},
    "OllamaMessage": {
        "properties": {"role": {"type": "string", "enum": _ROLES}, "images": {"enum": [None, []]}}
    },
    "Tool": {
        "anyOf": [{"properties": {"type": {"const": "function"}}, "required": ["function"]},
                  {"properties": {"type": {"enum": _HOSTED}}, "required": ["type"]}]
    },
    "StructuredOutputs": {"properties": {"structural_tag": _undone(), "json": _SOME_SCHEMA}},
    "ResponseFormat": {
        "oneOf": [
            of_kind("text", "json_object"), of_kind("json_schema", json_schema=_OF_SCHEMA["oneOf"][1], needed=("json_schema", )),
            of_kind("json", value={"type": "object"}, needed=("value", )), of_kind("regex", pattern=_TEXT, needed=("pattern", )),
            of_kind("grammar", grammar=_TEXT, needed=("grammar", ))
        ]
    },
    "Block": {
        "anyOf": [
            of_kind("text", text={"type": "string"}, needed=("text", )),
            of_kind("tool_use", name=_TEXT, id=_TEXT, input={"type": "object"}, needed=("name", "id", "input")),
            _found("tool_result"),
            of_kind("document", source=_DOCUMENT, needed=("source", )), _found("search_result"),
            of_kind("thinking", "redacted_thinking", "server_tool_use", "mcp_tool_use", "web_search_tool_result")
        ]
    },
    "Source": {
        "properties": {"content": {"oneOf": [{"type": ["string", "null"]}, {"type": "array", "items": _ANY_KIND}]}}
    },
    "Message": {
        "if": {"properties": {"role": {"enum": ["user", "system"]}}},
        "then": {"properties": {"content": {"oneOf": [{"type": "string"}, {"type": "array", "items": {
            "properties": {"type": {"not": {"const": "tool_use"}}}
        }}]}}}
    },
    "OutputConfig": {"properties": {"format": _OF_SCHEMA}},
    "MessagesRequest": {"properties": {"output_format": _OF_SCHEMA}, "allOf": [_FORCED]},
    "ResponsesRequest": {
        "properties": {
            "input": {"oneOf": [{"type": "null"}, {"type": "string"}, ITEMS]}, "background": _undone(False), "prompt": _undone(), "context_management": _undone(),
            "moderation": _undone()
        }, "anyOf": [
            {"properties": {"input": INPUT}, "required": ["input"]}, _has("previous_response_id"), _has("conversation")
        ]
    },
    "ConversationRequest": {"properties": {"items": {"oneOf": [{"type": "null"}, ADDED_ITEMS]}}},
    "ConversationItems": {"properties": {"items": ADDED_ITEMS}},
    "RerankRequest": {"properties": {"query": _TEXT}, **_one_of_fields("documents", "texts", value=_TEXTS)},
    "ScoreRequest": {
        "oneOf": [{
            "properties": {one: _TEXT, other: _TEXT_OR_TEXTS} | {name: {"type": "null"} for name in left},
            "required": [one, other]
        } for (one, other), left in zip(_PAIRS, reversed(_PAIRS), strict=True)]
    },
    "TokenizeRequest": {
        "properties": {"parse_special": {"const": True}}, "anyOf": [
            {"properties": {"content": {"type": "string"}}, "required": ["content"]},
            {"properties": {"content": {"type": "null"}, "prompt": {"type": "string"}}, "required": ["prompt"]}
        ]
    },
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
