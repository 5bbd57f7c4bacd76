"""The body of OpenAI's Responses API, and how it becomes a chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from exo.api.chat_request import (
    MAX_MESSAGES,
    MAX_TOOLS,
    ChatCompletionRequest,
    ChatMessage,
    ContentPart,
    FunctionCall,
    FunctionDefinition,
    FunctionName,
    JsonSchemaFormat,
    NamedToolChoice,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolName,
)
from exo.api.schema import Fraction, PositiveCount, Temperature
from exo.errors import InvalidRequestError


class InputPart(Struct):
  type: str
  text: str | None = None


class InputItem(Struct):
  """A message, a function call that the model made, its result, or the model's reasoning."""
  type: str | None = None
  role: str | None = None
  content: str | list[InputPart] | None = None
  call_id: str | None = None
  name: str | None = None
  arguments: str | None = None
  output: str | list[InputPart] | None = None


class ResponseTool(Struct):
  type: str
  name: FunctionName | None = None
  description: str | None = None
  parameters: dict[str, Any] | None = None
  strict: bool | None = None


class ResponseToolChoice(Struct):
  type: str
  name: str | None = None


class TextFormat(Struct):
  type: Literal["text", "json_object", "json_schema"]
  name: str | None = None
  schema: dict[str, Any] | bool | None = None
  strict: bool | None = None
  description: str | None = None


class TextOptions(Struct):
  format: TextFormat | None = None


class ResponsesRequest(Struct, kw_only=True):
  input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=MAX_MESSAGES)]
  model: str | None = None
  instructions: str | None = None
  max_output_tokens: PositiveCount | None = None
  temperature: Temperature | None = None
  top_p: Fraction | None = None
  stream: bool | None = None
  tools: Annotated[list[ResponseTool], Meta(max_length=MAX_TOOLS)] | None = None
  tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
  parallel_tool_calls: bool | None = None
  text: TextOptions | None = None
  previous_response_id: str | None = None
  metadata: dict[str, Any] | None = None

  def chat(self) -> ChatCompletionRequest:
    """The same as a chat. Raises `InvalidRequestError` for what only a server with a memory or other tools can do."""
    if self.previous_response_id is not None:
      raise InvalidRequestError(
          "previous_response_id: this node keeps no answers; send the conversation in input", "previous_response_id"
      )
    return ChatCompletionRequest(
        messages=self._messages(),
        model=self.model,
        max_completion_tokens=self.max_output_tokens,
        temperature=self.temperature,
        top_p=self.top_p,
        stream=self.stream,
        tools=[_tool(tool) for tool in self.tools] if self.tools else None,
        tool_choice=_choice(self.tool_choice),
        parallel_tool_calls=self.parallel_tool_calls,
        response_format=_format(self.text.format if self.text else None),
    )

  def _messages(self) -> list[ChatMessage]:
    messages = [ChatMessage("system", self.instructions)] if self.instructions else []
    if isinstance(self.input, str):
      return [*messages, ChatMessage("user", self.input)]
    for item in self.input:
      kind = item.type or ("message" if item.role else None)
      if kind == "message" and item.role is not None:
        messages.append(ChatMessage(item.role, _content(item.content)))
      elif kind == "function_call" and item.name is not None:
        call = ToolCall(FunctionCall(item.name, item.arguments or "{}"), item.call_id)
        if messages and messages[-1].role == "assistant":
          messages[-1].tool_calls = [*(messages[-1].tool_calls or []), call]
        else:
          messages.append(ChatMessage("assistant", tool_calls=[call]))
      elif kind == "function_call_output":
        messages.append(ChatMessage("tool", _content(item.output), tool_call_id=item.call_id))
      elif kind != "reasoning":
        raise InvalidRequestError(f"input: an item of type {str(kind)[:40]!r} cannot be understood", "input")
    if not messages:
      raise InvalidRequestError("input: there is no message", "input")
    return messages


def _content(content: str | list[InputPart] | None) -> str | list[ContentPart] | None:
  if not isinstance(content, list):
    return content
  parts = []
  for part in content:
    if part.type not in ("input_text", "output_text", "text") or part.text is None:
      raise InvalidRequestError(f"input: a part of type {part.type[:40]!r} cannot be understood", "input")
    parts.append(ContentPart("text", part.text))
  return parts


def _tool(tool: ResponseTool) -> Tool:
  if tool.type != "function" or tool.name is None:
    raise InvalidRequestError(f"tools: a tool of type {tool.type[:40]!r} is not here, only functions are", "tools")
  return Tool(FunctionDefinition(tool.name, tool.description, tool.parameters, tool.strict))


def _choice(choice: str | ResponseToolChoice | None) -> Any:
  if not isinstance(choice, ResponseToolChoice):
    return choice
  if choice.type != "function" or choice.name is None:
    raise InvalidRequestError("tool_choice names a function: {\"type\": \"function\", \"name\": …}", "tool_choice")
  return NamedToolChoice(ToolName(choice.name))


def _format(wanted: TextFormat | None) -> ResponseFormat | None:
  if wanted is None:
    return None
  return ResponseFormat(wanted.type, JsonSchemaFormat(wanted.name, wanted.description, wanted.schema, wanted.strict))
