"""A response as it grows: its output items, and the events that say what changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from exo.api.chat_parts import CallArguments, CallBegin, Content, Part, Reasoning
from exo.api.response_tools import Kind, OfferedTool, ToolSet
from exo.api.string_field import StringField
from exo.orchestration.text_stream import TextToken

Event = dict[str, Any]
Item = dict[str, Any]

_CALLS: dict[Kind, tuple[str, str]] = {
    "function": ("function_call", "fc_"),
    "custom": ("custom_tool_call", "ctc_"),
    "local_shell": ("local_shell_call", "lsh_"),
    "shell": ("shell_call", "sh_"),
    "apply_patch": ("apply_patch_call", "apc_"),
    "tool_search": ("tool_search_call", "tsc_"),
}
_PREFIXES = {"message": "msg_", "reasoning": "rs_"}


class ItemIds:
  """Ids of the items of one response or conversation, from which it can be found again."""
  def __init__(self, record_id: str, used: int = 0) -> None:
    self._hex, self.used = record_id.partition("_")[2], used

  def new(self, prefix: str) -> str:
    self.used += 1
    return f"{prefix}{self._hex}{self.used:06x}"

  def named(self, items: Sequence[Item]) -> list[Item]:
    """Items of a client, each with an id."""
    return [
        item if item.get("id") else item | {"id": self.new("msg_" if "role" in item else "item_")} for item in items
    ]


def record_of(item_id: str) -> str:
  """The part of an item's id that names its response or conversation; "" where it is none of ours."""
  return item_id.partition("_")[2][:-6]


class ResponseBuilder:
  """`logprobs` makes what is told of a message's tokens, if that was asked for."""
  def __init__(
      self,
      ids: ItemIds,
      tools: ToolSet,
      new_call_id: Callable[[], str],
      logprobs: Callable[[Sequence[TextToken]], list[Any]] | None = None
  ) -> None:
    self._ids, self._tools, self._new_call_id, self._logprobs = ids, tools, new_call_id, logprobs
    self._items: list[Item] = []
    self._field: StringField | None = None  # of the custom call that is open
    self._arguments = ""  # of a call that the client gets whole
    self._tool: OfferedTool | None = None
    self._cut = False

  @property
  def output(self) -> list[Item]:
    """As it is now."""
    return [_copy(item) for item in self._items]

  def add(self, parts: Sequence[Part], tokens: Sequence[TextToken] = ()) -> Iterator[Event]:
    """The events of what is new; `tokens` are those of its content."""
    told = self._logprobs(tokens) if self._logprobs is not None and tokens else []
    for part in parts:
      match part:
        case Content(text):
          yield from self._text("message", text, told)
          told = []
        case Reasoning(text):
          yield from self._text("reasoning", text, [])
        case CallBegin(_, name):
          yield from self._close()
          yield self._open(self._call(self._tools.of(name)))
        case CallArguments(_, text):
          yield from self._more_arguments(text)

  def end(self, cut: bool) -> Iterator[Event]:
    """`cut`: there was no room for more."""
    self._cut = cut
    yield from self._close()

  # messages and thoughts

  def _text(self, kind: str, text: str, logprobs: list[Any]) -> Iterator[Event]:
    if not self._items or self._items[-1]["type"] != kind or self._items[-1]["status"] != "in_progress":
      yield from self._close()
      item: Item = {"type": kind, "id": self._ids.new(_PREFIXES[kind]), "content": []}
      item["role" if kind == "message" else "summary"] = "assistant" if kind == "message" else []
      yield self._open(item | {"status": "in_progress"})
      part = self._part(kind)
      self._items[-1]["content"].append(part)
      yield self._at("response.content_part.added") | {"content_index": 0, "part": dict(part)}
    part = self._items[-1]["content"][0]
    part["text"] += text
    if kind == "message":
      part["logprobs"] = part["logprobs"] + logprobs
    yield self._at(f"response.{self._stem(kind)}.delta") | self._in_text(kind, logprobs) | {
        "content_index": 0, "delta": text
    }

  @staticmethod
  def _part(kind: str) -> dict[str, Any]:
    if kind == "message":
      return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": ""}

  @staticmethod
  def _stem(kind: str) -> str:
    return "output_text" if kind == "message" else "reasoning_text"

  @staticmethod
  def _in_text(kind: str, logprobs: list[Any]) -> dict[str, Any]:
    return {"logprobs": logprobs} if kind == "message" else {}

  # calls

  def _call(self, tool: OfferedTool) -> Item:
    kind, prefix = _CALLS[tool.kind]
    item: Item = {"type": kind, "id": self._ids.new(prefix), "call_id": self._new_call_id(), "status": "in_progress"}
    self._tool, self._arguments, self._field = tool, "", None
    if tool.kind in ("function", "custom"):
      item |= {"name": tool.name} | ({"namespace": tool.namespace} if tool.namespace else {})
    if tool.kind == "function":
      return item | {"arguments": ""}
    if tool.kind == "custom":
      self._field = StringField("input")
      return item | {"input": ""}
    return item | self._done_on_client(tool)

  def _more_arguments(self, text: str) -> Iterator[Event]:
    item = self._items[-1]
    if item["type"] == "function_call":
      item["arguments"] += text
      yield self._at("response.function_call_arguments.delta") | {"delta": text}
    elif self._field is not None:
      if new := self._field.push(text):
        item["input"] = self._field.value
        yield self._at("response.custom_tool_call_input.delta") | {"delta": new}
    else:
      self._arguments += text

  def _done_on_client(self, tool: OfferedTool) -> dict[str, Any]:
    """What the client is to run, of the arguments that are there."""
    try:
      read = json.loads(self._arguments or "{}", strict=False)
    except (ValueError, RecursionError):
      read = {}
    said: dict[str, Any] = read if isinstance(read, dict) else {}
    if tool.kind == "tool_search":
      return {"execution": "client", "arguments": said}
    if tool.kind == "apply_patch":
      operation = {"type": said.get("type", "update_file"), "path": str(said.get("path", ""))}
      return {"operation": operation | ({"diff": said.get("diff", "")} if operation["type"] != "delete_file" else {})}
    if tool.kind == "shell":
      return {
          "action": {
              "commands": _words(said.get("commands")), "timeout_ms": said.get("timeout_ms"),
              "max_output_length": said.get("max_output_length")
          }
      }
    command = said.get("command")
    return {
        "action": {
            "type": "exec", "command": ["sh", "-c", command] if isinstance(command, str) else _words(command),
            "env": {}, "timeout_ms": said.get("timeout_ms"), "user": None,
            "working_directory": said.get("working_directory")
        }
    }

  # items

  def _open(self, item: Item) -> Event:
    self._items.append(item)
    return {"type": "response.output_item.added", "output_index": len(self._items) - 1, "item": _copy(item)}

  def _close(self) -> Iterator[Event]:
    if not self._items or self._items[-1]["status"] != "in_progress":
      return
    item = self._items[-1]
    item["status"] = "incomplete" if self._cut else "completed"
    if item["type"] in _PREFIXES:
      part, kind = item["content"][0], item["type"]
      done = self._at(f"response.{self._stem(kind)}.done") | self._in_text(kind, part.get("logprobs", []))
      yield done | {"content_index": 0, "text": part["text"]}
      yield self._at("response.content_part.done") | {"content_index": 0, "part": dict(part)}
    elif item["type"] == "function_call":
      yield self._at("response.function_call_arguments.done") | {"arguments": item["arguments"], "name": item["name"]}
    elif self._field is not None:
      if new := self._field.end():
        yield self._at("response.custom_tool_call_input.delta") | {"delta": new}
      item["input"] = self._field.value
      yield self._at("response.custom_tool_call_input.done") | {"input": item["input"]}
    elif self._tool is not None:
      item |= self._done_on_client(self._tool)
    yield {"type": "response.output_item.done", "output_index": len(self._items) - 1, "item": _copy(item)}

  def _at(self, kind: str) -> Event:
    return {"type": kind, "item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}


def _words(value: Any) -> list[str]:
  return [str(word) for word in value] if isinstance(value, list) else [value] if isinstance(value, str) else []


def _copy(item: Item) -> Item:
  """As it is now: events are written before the next change, but kept ones must not follow it."""
  return item | {"content": [dict(part) for part in item["content"]]} if "content" in item else dict(item)
