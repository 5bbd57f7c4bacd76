"""Tools as Anthropic's clients name them: functions of their own, those that Anthropic describes, and those that it runs itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from exo.api.chat_request import FunctionDefinition, FunctionName, Tool


class MessagesTool(Struct):
  name: FunctionName
  description: str | None = None
  input_schema: dict[str, Any] | None = None
  type: str | None = None


def functions_of(tools: Sequence[MessagesTool]) -> tuple[list[Tool], list[str]]:
  """(functions, what of hosted tools is left out). What the client runs by a name of Anthropic's is described here."""
  functions: list[Tool] = []
  left_out: list[str] = []
  for tool in tools:
    kind = tool.type or "custom"
    known = next((schema for name, schema in _CLIENT_TOOLS.items() if kind.startswith(name)), None)
    if kind == "custom" or tool.input_schema is not None:
      functions.append(Tool(FunctionDefinition(tool.name, tool.description, tool.input_schema)))
    elif known is not None:
      functions.append(Tool(FunctionDefinition(tool.name, known[0], known[1])))
    else:
      left_out.append(kind)
  return functions, left_out


def _schema(required: Sequence[str], **properties: Any) -> dict[str, Any]:
  return {"type": "object", "properties": properties, "required": list(required)}


_STRING, _INTEGER = {"type": "string"}, {"type": "integer"}
_EDITING = dict.fromkeys(("path", "file_text", "old_str", "new_str", "insert_text"),
                         _STRING) | {"insert_line": _INTEGER, "view_range": {"type": "array", "items": _INTEGER}}
_EDITS = ("view", "create", "str_replace", "insert")
# by the beginning of their type: what they are for, and what they take
_CLIENT_TOOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "bash_": (
        "Run a command in a shell that stays open between calls",
        _schema((), command=_STRING, restart={"type": "boolean"})
    ),
    "text_editor_": (
        "View, create and edit files",
        _schema(("command", "path"), command={"type": "string", "enum": [*_EDITS]}, **_EDITING)
    ),
    "memory_": (
        "View, create and edit files of a memory that lasts",
        _schema(("command", ),
                command={"type": "string", "enum": [*_EDITS, "delete", "rename"]},
                old_path=_STRING,
                new_path=_STRING,
                **_EDITING)
    ),
}
