"""The body of a chat completion. Every other way to chat (Responses, Messages, Ollama's routes) is turned into one."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from exo.api.constraints import ConstraintFields
from exo.api.schema import TokenBound, check_depth
from exo.errors import InvalidRequestError

MAX_MESSAGES = 4096
MAX_TOOLS = 128

# tools that others run: a chat that brings nothing else is a chat without tools, not a mistake
_HOSTED = ("web_", "file_search", "code_interpreter", "image_generation", "mcp", "computer", "url_context", "google_")

_KEEP_RUNNING = (
    "With stream: the answer goes on without its client for at most ten minutes. Its events have ids; GET "
    "/v1/chat/completions/{id}/stream with the last one as Last-Event-ID, or as starting_after, gives the rest; POST "
    "/v1/cancel/{id} ends it. Its first chunk says keep_running: false where there is no room for one more"
)

FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class ContentPart(Struct):
  type: str
  text: str | None = None


class FunctionCall(Struct):
  name: str
  arguments: str | dict[str, Any] | None = None

  @property
  def parsed(self) -> Any:
    """The arguments as templates expect them: an object where they are one."""
    if not isinstance(self.arguments, str):
      value = self.arguments or {}
    else:
      try:
        value = json.loads(self.arguments or "{}")
      except (ValueError, RecursionError):
        return self.arguments
    check_depth(value, "messages")
    return value


class ToolCall(Struct):
  function: FunctionCall
  id: str | None = None
  type: str = "function"


class ChatMessage(Struct):
  role: str
  content: str | list[ContentPart] | None = None
  name: str | None = None
  tool_calls: list[ToolCall] | None = None
  tool_call_id: str | None = None
  reasoning_content: str | None = None
  function_call: FunctionCall | None = None  # of before there were tools

  @property
  def calls(self) -> list[ToolCall]:
    """In either form."""
    legacy = [ToolCall(self.function_call)] if self.function_call is not None and not self.tool_calls else []
    return self.tool_calls or legacy

  @property
  def size(self) -> int:
    """About how many characters it has."""
    parts = self.content if isinstance(self.content, list) else []
    whole = self.content if isinstance(self.content, str) else ""
    calls = msgspec.json.encode(self.calls) if self.calls else b""
    return len(whole) + sum(len(part.text or "") for part in parts) + len(self.reasoning_content or "") + len(calls)

  @property
  def text(self) -> str:
    """Text parts joined. Raises `InvalidRequestError` for other kinds of part."""
    if not isinstance(self.content, list):
      return self.content or ""
    for part in self.content:
      if part.type != "text" or part.text is None:
        raise InvalidRequestError(
            f"messages: a part of type {part.type[:40]!r} cannot be understood, only text can", "messages"
        )
    return "".join(part.text or "" for part in self.content)

  def for_template(self) -> dict[str, Any]:
    """As chat templates expect it: text parts joined, `developer` as `system`. Raises `InvalidRequestError`."""
    role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
    if role not in ("system", "user", "assistant", "tool"):
      raise InvalidRequestError(
          f"messages: there is no role {self.role[:40]!r}; system, developer, user, assistant and tool are", "messages"
      )
    # an answer or a result without content says nothing: a chat that has one already must go on all the same
    if self.content is None and role in ("system", "user"):
      raise InvalidRequestError(f"messages: a message of role {self.role} without content", "messages")
    message: dict[str, Any] = {"role": role, "content": self.text}
    for key in ("name", "tool_call_id", "reasoning_content"):
      if (value := getattr(self, key)) is not None:
        message[key] = value
    if self.calls and role == "assistant":
      message["tool_calls"] = [{
          "id": call.id or "", "type": "function",
          "function": {"name": call.function.name, "arguments": call.function.parsed}
      } for call in self.calls]
    return message


class FunctionDefinition(Struct):
  name: FunctionName
  description: str | None = None
  parameters: dict[str, Any] | None = None
  strict: bool | None = None

  @property
  def schema(self) -> dict[str, Any]:
    """What the arguments must be; always an object, an empty one where nothing is said of them."""
    if self.parameters is None:
      return {"type": "object", "properties": {}}
    return {"type": "object"} | self.parameters


class Tool(Struct):
  """Of another type than `function`, it is a tool of hosted services, which nobody runs here."""
  function: FunctionDefinition = msgspec.field(default_factory=lambda: FunctionDefinition(""))
  type: str = "function"

  def for_template(self) -> dict[str, Any]:
    function: dict[str, Any] = {"name": self.function.name, "description": self.function.description or ""}
    function["parameters"] = self.function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


class ToolName(Struct):
  name: str


class NamedToolChoice(Struct):
  function: ToolName
  type: Literal["function"] = "function"


class ChatCompletionRequest(ConstraintFields, kw_only=True):
  messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
  max_completion_tokens: TokenBound | None = None
  logprobs: bool | None = None
  top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
  tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
  tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
  parallel_tool_calls: bool | None = None
  functions: Annotated[list[FunctionDefinition],
                       Meta(max_length=MAX_TOOLS)] | None = None  # as tools were called before
  function_call: Literal["none", "auto"] | ToolName | None = None
  chat_template_kwargs: dict[str, Any] | None = None
  continue_final_message: bool | None = None  # as vLLM knows it: the answer goes on with the last message
  keep_running: Annotated[bool, Meta(description=_KEEP_RUNNING)] = False

  @property
  def size(self) -> int:
    """About how many characters the prompt is made of."""
    described = msgspec.json.encode((self.tools,
                                     self.chat_template_kwargs)) if self.tools or self.chat_template_kwargs else b""
    return len(described) + sum(message.size for message in self.messages)

  @property
  def most_tokens(self) -> int | None:
    """Of the answer, None where the request says nothing of it. Raises `InvalidRequestError`."""
    newer = self.max_completion_tokens is not None
    most = self.max_completion_tokens if newer else self.max_tokens
    if most == 0:
      param = "max_completion_tokens" if newer else "max_tokens"
      raise InvalidRequestError(f"{param}: an answer of no tokens is none; leave it out, or ask for at least 1", param)
    return most

  @property
  def goes_on(self) -> bool:
    """Without its client. Raises `InvalidRequestError`."""
    if self.keep_running and not self.stream:
      raise InvalidRequestError(
          "keep_running needs stream: true, whose first chunk tells the answer's id", "keep_running"
      )
    return self.keep_running

  @property
  def title(self) -> str:
    """What was asked last, for the node's own screen."""
    content = next((m.content for m in reversed(self.messages) if m.role == "user"), None)
    return content if isinstance(content, str) else " ".join(part.text or "" for part in content or ())

  @property
  def token_logprobs(self) -> int | None:
    """How many alternatives each token's log probability comes with; None: no log probabilities."""
    if self.top_logprobs and not self.logprobs:
      raise InvalidRequestError("top_logprobs needs logprobs: true", "top_logprobs")
    return (self.top_logprobs or 0) if self.logprobs else None

  @property
  def callable_tools(self) -> list[Tool]:
    """The tools that the model may call. Raises `InvalidRequestError` for a choice that names none of them."""
    tools = [tool for tool in self.tools or () if tool.type == "function"]
    if self.tools and not tools and not any(tool.type.startswith(_HOSTED) for tool in self.tools):
      raise InvalidRequestError(
          f"tools: a tool of type {self.tools[0].type[:40]!r} is not here, only functions are", "tools"
      )
    if any(not tool.function.name for tool in tools):
      raise InvalidRequestError("tools: a tool of type function needs its `function`, with a name", "tools")
    names = [tool.function.name for tool in tools]
    if len(set(names)) != len(names):
      raise InvalidRequestError("tools: two functions have the same name", "tools")
    for tool in tools:
      check_depth(tool.function.parameters, "tools")
    choice = self.tool_choice
    if choice in (None, "auto", "none"):
      return [] if choice == "none" else tools
    if not tools:
      raise InvalidRequestError("tool_choice is only allowed with tools", "tool_choice")
    if isinstance(choice, NamedToolChoice):
      tools = [tool for tool in tools if tool.function.name == choice.function.name]
      if not tools:
        raise InvalidRequestError(f"tool_choice: there is no function {choice.function.name[:64]!r}", "tool_choice")
    return tools

  def adopt_functions(self) -> bool:
    """Make tools of `functions`; returns whether there are any. Raises `InvalidRequestError`."""
    if self.functions is None:
      if self.function_call not in (None, "none", "auto"):
        raise InvalidRequestError("function_call is only allowed with functions", "function_call")
      return False
    if self.tools or self.tool_choice is not None:
      raise InvalidRequestError("functions and tools say the same in two ways: send tools alone", "functions")
    choice = self.function_call
    self.tools = [Tool(function) for function in self.functions] or None
    self.tool_choice = NamedToolChoice(choice) if isinstance(choice, ToolName) else choice if self.functions else None
    self.parallel_tool_calls = False  # an answer has room for one
    return True

  @property
  def ignored_tools(self) -> list[str]:
    """The types of tools that the model does not see."""
    return list(dict.fromkeys(tool.type for tool in self.tools or () if tool.type != "function"))

  @property
  def must_call(self) -> bool:
    return self.tool_choice == "required" or isinstance(self.tool_choice, NamedToolChoice)

  @property
  def one_call(self) -> bool:
    """At most one call, or exactly one where there must be any."""
    return self.parallel_tool_calls is False or isinstance(self.tool_choice, NamedToolChoice)


class TokenEncodeRequest(Struct):
  messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
  model: str | None = None
