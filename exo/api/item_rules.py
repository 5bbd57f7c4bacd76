"""What the items of a Responses request and of a conversation must be, for those who read `/openapi.json`."""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string"}


def of_kind(*kinds: str, needed: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
  """An object whose `type` is one of `kinds`; what is `needed` of its properties is there."""
  return {"type": "object", "properties": {"type": {"enum": list(kinds)}} | properties, "required": ["type", *needed]}


_PARTS = {
    "oneOf": [_TEXT, {
        "type": "array",
        "items": of_kind("input_text", "output_text", "text", text={"type": "string"}, needed=("text", ))
    }]
}  # yapf: disable
# what becomes a message of the chat
_SAID = [
    {
        "type": "object", "properties": {
            "type": {"enum": ["message", None]}, "role": {"enum": ["system", "developer", "user", "assistant"]},
            "content": _PARTS
        }, "required": ["role", "content"]
    }, of_kind("function_call", "custom_tool_call", name=_TEXT, needed=("name", )),
    of_kind("function_call_output", "custom_tool_call_output"),
    of_kind("local_shell_call", action={"type": "object"}, needed=("action", ))
]  # yapf: disable
_SILENT = [
    of_kind("reasoning", content={"oneOf": [{"type": "null"}, _PARTS]}), of_kind("web_search_call"),
    of_kind("item_reference", id=_TEXT, needed=("id", ))
]  # yapf: disable
_ITEM = {"allOf": [{"$ref": "#/components/schemas/InputItem"}, {"anyOf": [*_SAID, *_SILENT]}]}

ADDED_ITEMS = {"type": "array", "items": _ITEM, "maxItems": 20}
ITEMS = {"type": "array", "items": _ITEM, "maxItems": 4096}
INPUT = {"oneOf": [_TEXT, ITEMS | {"contains": {"anyOf": _SAID}}]}  # in which something is said
