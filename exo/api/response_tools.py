"""The tools of a Responses request: what the model is offered, as functions, and how calls of it are told to the client."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import Struct

from exo.api.chat_request import FunctionDefinition, FunctionName, NamedToolChoice, Tool, ToolName
from exo.errors import InvalidRequestError

Kind = Literal["function", "custom", "local_shell", "shell", "apply_patch", "tool_search"]

_MOST_OFFERED = 512
_LONGEST_SHOWN = 64
_TEXT = {"type": "string"}
_NUMBER = {"type": "integer", "minimum": 1}


class ResponseTool(Struct):
  """A tool of any kind; of those that the client does not run only `type` is read."""
  type: str
  name: FunctionName | None = None
  description: str | None = None
  parameters: dict[str, Any] | None = None
  strict: bool | None = None
  format: Any = None
  environment: Any = None
  execution: Any = None
  tools: list[ResponseTool] | None = None


class ToolReference(Struct):
  type: str
  name: str | None = None
  namespace: str | None = None


class ResponseToolChoice(Struct):
  type: str
  name: str | None = None
  namespace: str | None = None
  mode: Literal["auto", "required"] | None = None
  tools: list[ToolReference] | None = None


@dataclass(frozen=True, slots=True)
class OfferedTool:
  """A function that the model knows as `function.name`, and the client under its own `kind`, `namespace` and `name`."""
  kind: Kind
  name: str
  namespace: str | None
  function: FunctionDefinition

  @property
  def shown(self) -> str:
    return self.function.name


def _object(required: Sequence[str], **properties: Any) -> dict[str, Any]:
  return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


_LOCAL_SHELL = _object(("command", ),
                       command={"type": "array", "items": _TEXT, "minItems": 1},
                       working_directory=_TEXT,
                       timeout_ms=_NUMBER)
_SHELL = _object(("commands", ),
                 commands={"type": "array", "items": _TEXT, "minItems": 1},
                 timeout_ms=_NUMBER,
                 max_output_length=_NUMBER)
_APPLY_PATCH = _object(("type", "path"),
                       type={"enum": ["create_file", "update_file", "delete_file"]},
                       path=_TEXT,
                       diff=_TEXT)
# kinds without a name of their own, which the client runs on its machine
_ON_CLIENT: dict[str, tuple[Kind, str, dict[str, Any]]] = {
    "local_shell": ("local_shell", "Run a command, given as its words, on the user's machine.", _LOCAL_SHELL),
    "shell": ("shell", "Run shell commands on the user's machine.", _SHELL),
    "apply_patch": ("apply_patch", "Create, update or delete a file by a diff.", _APPLY_PATCH),
}


def _custom(tool: ResponseTool) -> FunctionDefinition:
  """Free text travels as a function's only argument. Its grammar is told to the model in words."""
  told = [tool.description or "", "The argument `input` is plain text."]
  form = tool.format if isinstance(tool.format, dict) else {}
  if isinstance(definition := form.get("definition"), str):
    told.append(f"It follows this {form.get('syntax', 'lark')} grammar:\n{definition}")
  text = "\n".join(line for line in told if line)
  return FunctionDefinition(tool.name or "", text, _object(("input", ), input=_TEXT))


def shown_name(name: str, namespace: str | None) -> str:
  """One name for a function and the container in which it is, such that templates and grammars bear it."""
  if not namespace:
    return name
  joined = re.sub(r"[^A-Za-z0-9_.-]", "_", namespace + ("" if namespace.endswith("_") else "__") + name)
  if len(joined) <= _LONGEST_SHOWN:
    return joined
  digest = hashlib.sha256(joined.encode("utf-8", "replace")).hexdigest()[:8]
  return f"{joined[:_LONGEST_SHOWN - 9]}_{digest}"


class ToolSet:
  """The tools of one request, and those that its items bring; of the latter the last one of a name counts.

  Raises `InvalidRequestError` for those without a name, and for too many.
  """
  def __init__(self, tools: Iterable[ResponseTool], brought: Iterable[ResponseTool] = ()) -> None:
    self.offered: list[OfferedTool] = []
    self.ignored: list[str] = []
    self._shown: dict[str, OfferedTool] = {}
    self._is_brought = False
    for tool in tools:
      self._add(tool, None)
    self._is_brought = True
    for tool in brought:
      self._add(tool, None)

  def _add(self, tool: ResponseTool, namespace: ResponseTool | None) -> None:
    if tool.type == "namespace" and namespace is None:
      if tool.name is None:
        raise InvalidRequestError("tools: a namespace needs a name", "tools")
      for inner in tool.tools or ():
        self._add(inner, tool)
    elif tool.type in ("function", "custom"):
      if tool.name is None:
        raise InvalidRequestError(f"tools: a tool of type {tool.type} needs a name", "tools")
      function = _custom(tool) if tool.type == "custom" else FunctionDefinition(
          tool.name, tool.description, tool.parameters, tool.strict
      )
      self._offer("function" if tool.type == "function" else "custom", function, namespace)
    elif tool.type == "tool_search" and tool.execution == "client":
      self._offer("tool_search", FunctionDefinition(tool.type, tool.description, tool.parameters), None)
    elif tool.type in _ON_CLIENT and not _in_container(tool.environment):
      kind, description, parameters = _ON_CLIENT[tool.type]
      self._offer(kind, FunctionDefinition(tool.type, description, parameters), None)
    elif tool.type[:64] not in self.ignored:
      self.ignored.append(tool.type[:64])

  def _offer(self, kind: Kind, function: FunctionDefinition, namespace: ResponseTool | None) -> None:
    if len(self.offered) == _MOST_OFFERED:
      raise InvalidRequestError(f"tools: there are more than {_MOST_OFFERED} functions in all", "tools")
    name, within = function.name, namespace.name if namespace is not None else None
    if self._is_brought:
      self._forget(kind, name, within)
    shown = shown_name(name, within)
    if shown in self._shown and (kind == "function" and not within):
      raise InvalidRequestError(f"tools: two functions have the name {name[:64]!r}", "tools")
    while shown in self._shown:
      shown += "_"
    about = [namespace.description or "" if namespace is not None else "", function.description or ""]
    described = FunctionDefinition(
        shown, "\n".join(text for text in about if text) or None, function.parameters, function.strict
    )
    tool = OfferedTool(kind, name, within, described)
    self.offered.append(tool)
    self._shown[shown] = tool

  def _forget(self, kind: Kind, name: str, namespace: str | None) -> None:
    for tool in [t for t in self.offered if (t.kind, t.name, t.namespace) == (kind, name, namespace)]:
      self.offered.remove(tool)
      del self._shown[tool.shown]

  def of(self, shown: str) -> OfferedTool:
    """Who the model called. What it cannot have called is told as a function."""
    return self._shown.get(shown) or OfferedTool("function", shown, None, FunctionDefinition(shown))

  def shown(self, kind: str, name: str, namespace: str | None = None) -> str:
    """What the model knows a call of the history as."""
    found = next((t for t in self.offered if (t.kind, t.name, t.namespace) == (kind, name, namespace)), None)
    return found.shown if found is not None else shown_name(name, namespace)

  def choose(self, choice: str | ResponseToolChoice | None) -> tuple[list[Tool] | None, Any]:
    """The functions of a chat, and its `tool_choice`. Raises `InvalidRequestError`."""
    tools = self.offered
    wanted: Any = choice
    if isinstance(choice, ResponseToolChoice) and choice.type == "allowed_tools":
      named = [self._named(r.type, r.name, r.namespace) for r in choice.tools or ()]
      tools = [tool for tool in named if tool is not None]
      wanted = choice.mode or "auto"
    elif isinstance(choice, ResponseToolChoice):
      tool = self._named(choice.type, choice.name, choice.namespace)
      if tool is None:
        raise InvalidRequestError(
            f"tool_choice: {choice.type[:64]!r} is a tool of hosted services, which this server does not run",
            "tool_choice"
        )
      wanted = NamedToolChoice(ToolName(tool.shown))
    if wanted == "required" and not tools:
      reason = f"those of the kinds {', '.join(self.ignored[:20])} are not run here" if self.ignored else "there are none"
      raise InvalidRequestError(f"tool_choice: a call is required, but of no tool: {reason}", "tool_choice")
    return [Tool(tool.function) for tool in tools] or None, wanted

  def _named(self, kind: str, name: str | None, namespace: str | None) -> OfferedTool | None:
    """None for a kind that is ignored."""
    if kind not in ("function", "custom", "tool_search", *_ON_CLIENT):
      return None
    if kind not in ("function", "custom"):
      name = kind
    found = [
        t for t in self.offered if t.kind == kind and name in (t.name, t.shown) and namespace in (None, t.namespace)
    ]
    if not found:
      raise InvalidRequestError(
          f"tool_choice: there is no {kind} {str(name)[:64]!r} among the tools" if name is not None else
          f"tool_choice: name the {kind}, as {{\"type\": \"{kind}\", \"name\": …}}", "tool_choice"
      )
    return next((t for t in found if t.namespace is None), found[0])


def _in_container(environment: Any) -> bool:
  """The commands of such a shell run at a hosted service."""
  return isinstance(environment, dict) and str(environment.get("type", "local")).startswith("container")
