"""The items of a Responses request's input, as the messages of a chat."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from exo.api.chat_request import ChatMessage, ContentPart, FunctionCall, ToolCall
from exo.api.response_tools import ResponseTool, ToolSet
from exo.errors import InvalidRequestError

_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
# of what hosted services ran: their results stand in the messages that followed, or are nothing that can be told in words
_SKIPPED = frozenset((
    "web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "computer_call",
    "computer_call_output", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "program",
    "program_output", "additional_tools", "compaction_trigger", "configuration_update", "context_compaction",
    "ghost_snapshot"
))
_SUMMARY_MARK = "exo-summary-1:"
_ELSEWHERE = "(An earlier part of this conversation was compacted by another service, in a form that only that one can read.)"
_COPIED = 200  # of what a client sent, in an error


class InputPart(Struct):
  type: str
  text: str | None = None
  refusal: str | None = None


class InputItem(Struct):
  """The fields of all kinds of items that are read."""
  type: str | None = None
  id: str | None = None
  role: str | None = None
  content: str | list[InputPart] | None = None
  call_id: str | None = None
  name: str | None = None
  namespace: str | None = None
  server_label: str | None = None
  arguments: Any = None
  input: str | None = None
  output: Any = None
  action: dict[str, Any] | None = None
  operation: dict[str, Any] | None = None
  encrypted_content: str | None = None


def kind_of(item: Mapping[str, Any]) -> str:
  """Messages and references are recognized without a type, too."""
  kind = item.get("type")
  if kind is None:
    kind = "message" if "role" in item else "item_reference" if set(item) <= {"id", "type"} and "id" in item else None
  return str(kind)


def id_of(item: Mapping[str, Any], where: str = "input") -> str | None:
  """Raises `InvalidRequestError` for an id that is no text."""
  found = item.get("id")
  if found is not None and not isinstance(found, str):
    raise InvalidRequestError(f"{where}.id: an item's id is a text", "input")
  return found


def as_kept(item: dict[str, Any]) -> dict[str, Any]:
  """A message as OpenAI's clients read it back: with a type, and its text as a part."""
  if "role" not in item:
    return item
  text = item.get("content")
  if not isinstance(text, str):
    return {"type": "message"} | item
  part: dict[str, Any] = {"type": "input_text", "text": text}
  if item["role"] == "assistant":
    part = {"type": "output_text", "text": text, "annotations": []}
  return {"type": "message"} | item | {"content": [part]}


def messages_of(items: Iterable[Mapping[str, Any]], tools: ToolSet) -> list[ChatMessage]:
  """Raises `InvalidRequestError` that names the item. References must have been resolved."""
  chat = _Chat(tools)
  for at, item in enumerate(items):
    chat.add(f"input[{at}]", item)
  return chat.messages


def tools_in(items: Iterable[Mapping[str, Any]]) -> list[ResponseTool]:
  """The tools that come as items: with the developer's words, or as what a search at the client has found.

  Raises `InvalidRequestError` that names the item.
  """
  brought: list[ResponseTool] = []
  for at, item in enumerate(items):
    if kind_of(item) in ("additional_tools", "tool_search_output"):
      try:
        brought += msgspec.convert(item.get("tools") or [], list[ResponseTool])
      except msgspec.ValidationError as error:
        raise InvalidRequestError(f"input[{at}].tools: {error}"[:1000], "input") from None
  return brought


def sealed_summary(text: str) -> str:
  """The `encrypted_content` of a compaction: a text that travels with its client, and that nobody takes for another's."""
  return _SUMMARY_MARK + base64.b64encode(text.encode("utf-8", "replace")).decode()


def _summary(content: str | None) -> str:
  if content is None or not content.startswith(_SUMMARY_MARK):
    return _ELSEWHERE
  try:
    return base64.b64decode(content.removeprefix(_SUMMARY_MARK), validate=True).decode()
  except (binascii.Error, UnicodeDecodeError, ValueError):
    raise InvalidRequestError("input: the encrypted_content of a compaction was changed", "input") from None


class _Chat:
  def __init__(self, tools: ToolSet) -> None:
    self.messages: list[ChatMessage] = []
    self._tools = tools
    self._thought = ""  # of the assistant message that comes next
    self._calls: dict[str, str] = {}  # call ids by the ids of their items

  def add(self, where: str, raw: Mapping[str, Any]) -> None:
    kind = kind_of(raw)
    id_of(raw, where)
    if kind in _SKIPPED or (kind.startswith("tool_search_") and raw.get("execution") == "server"):
      return
    try:
      item = msgspec.convert(raw, InputItem)
    except msgspec.ValidationError as error:
      text, _, path = str(error).rpartition(" - at ")
      raise InvalidRequestError(
          f"{where}{path.strip('`').removeprefix('$')}: {text or error}"[:1000], "input"
      ) from None
    if kind == "message" and item.role is not None:
      self._message(where, item, item.role)
    elif kind == "reasoning":
      self._thought += _joined(item.content, where) or "" if item.content is not None else ""
    elif kind == "compaction":
      self.messages.append(ChatMessage("user", _summary(item.encrypted_content)))
    elif kind == "tool_search_output":
      self.messages.append(ChatMessage("tool", _found(raw.get("tools")), tool_call_id=item.call_id))
    elif kind.endswith("_call_output"):
      call_id = item.call_id or self._calls.get(item.id or "", item.id)
      output = raw.get("status") if item.output is None else item.output
      self.messages.append(ChatMessage("tool", _output(output, where), tool_call_id=call_id))
    else:
      name, arguments = self._call(where, kind, item)
      self._add_call(name, arguments, item)
      if kind == "mcp_call" and item.output is not None:
        self.messages.append(ChatMessage("tool", _output(item.output, where), tool_call_id=item.id))

  def _message(self, where: str, item: InputItem, role: str) -> None:
    message = ChatMessage(role, _content(item.content, where))
    if role == "assistant" and self._thought:
      message.reasoning_content = self._thought
    self._thought = ""
    self.messages.append(message)

  def _call(self, where: str, kind: str, item: InputItem) -> tuple[str, str]:
    """Name and arguments of a call, as the model made it."""
    if kind in ("function_call", "custom_tool_call", "mcp_call") and item.name is not None:
      if kind == "custom_tool_call":
        return self._tools.shown("custom", item.name, item.namespace), _json({"input": item.input or ""})
      arguments = item.arguments if isinstance(item.arguments, str) else _json(item.arguments or {})
      return self._tools.shown("function", item.name, item.namespace or item.server_label), arguments or "{}"
    if kind in ("local_shell_call", "shell_call") and item.action is not None:
      done = {key: value for key, value in item.action.items() if value not in (None, {}) and key != "type"}
      name = kind.removesuffix("_call")
      return self._tools.shown(name, name), _json(done)
    if kind == "apply_patch_call" and item.operation is not None:
      return self._tools.shown("apply_patch", "apply_patch"), _json(item.operation)
    if kind == "tool_search_call":
      return self._tools.shown("tool_search", "tool_search"), _json(item.arguments or {})
    raise InvalidRequestError(f"{where}: an item of type {kind[:40]!r} cannot be understood", "input")

  def _add_call(self, name: str, arguments: str, item: InputItem) -> None:
    call_id = item.call_id or item.id
    if item.id and item.call_id:
      self._calls[item.id] = item.call_id
    call = ToolCall(FunctionCall(name, arguments), call_id)
    last = self.messages[-1] if self.messages else None
    if last is not None and last.role == "assistant" and not self._thought:
      last.tool_calls = [*(last.tool_calls or []), call]
      return
    self.messages.append(ChatMessage("assistant", tool_calls=[call], reasoning_content=self._thought or None))
    self._thought = ""


def _found(tools: Any) -> str:
  """What a search for tools gave, by their names."""
  within = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
  return _json([{key: tool.get(key) for key in ("type", "name", "description") if tool.get(key)} for tool in within])


def _json(value: Any) -> str:
  return json.dumps(value, ensure_ascii=False)


def _text(part: InputPart, where: str) -> str:
  text = part.refusal if part.type == "refusal" else part.text if part.type in _TEXTS else None
  if text is None:
    raise InvalidRequestError(
        f"{where}: a part of type {part.type[:40]!r} cannot be understood, only text can: send what it says as input_text",
        "input"
    )
  return text


def _content(content: str | list[InputPart] | None, where: str) -> str | list[ContentPart] | None:
  if not isinstance(content, list):
    return content
  return [ContentPart("text", _text(part, where)) for part in content]


def _joined(content: str | list[InputPart] | None, where: str) -> str | None:
  return "".join(_text(part, where) for part in content) if isinstance(content, list) else content


def _output(output: Any, where: str) -> str:
  """What a tool gave, as text: parts joined, anything else as the JSON that it is."""
  if isinstance(output, str):
    return output
  if isinstance(output, list) and output and all(isinstance(part, dict) and "type" in part for part in output):
    try:
      return _joined(msgspec.convert(output, list[InputPart]), where) or ""
    except msgspec.ValidationError as error:
      raise InvalidRequestError(f"{where}.output: {str(error)[:_COPIED]}", "input") from None
  if output is None or output == []:
    return ""
  return _json(output)
