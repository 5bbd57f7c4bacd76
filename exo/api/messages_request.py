"""The body of Anthropic's Messages API, and how it becomes a chat."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, ValidationError, convert

from exo.api.anthropic_tools import MessagesTool, functions_of
from exo.api.chat_request import (
    MAX_MESSAGES,
    MAX_TOOLS,
    ChatCompletionRequest,
    ChatMessage,
    FunctionCall,
    NamedToolChoice,
    ToolCall,
    ToolName,
)
from exo.api.constraints import JsonSchemaFormat, ResponseFormat
from exo.api.schema import Count, Fraction, PositiveCount
from exo.errors import InvalidRequestError


class Source(Struct):
  """What a document is: text, or blocks of it."""
  type: str = ""
  data: str | None = None
  content: str | list[Block] | None = None


class Block(Struct):
  """A part of a message: text, a document, what a search found, a tool's use or result, or the model's thinking."""
  type: str
  text: str | None = None
  id: str | None = None
  name: str | None = None
  input: dict[str, Any] | None = None
  tool_use_id: str | None = None
  content: Any = None  # texts or blocks, in the kinds that are read
  thinking: str | None = None
  title: str | None = None
  context: str | None = None
  source: str | Source | None = None
  is_error: bool | None = None


class Message(Struct):
  role: Literal["user", "assistant", "system"]
  content: str | list[Block]


class MessagesToolChoice(Struct):
  type: Literal["auto", "any", "tool", "none"]
  name: str | None = None
  disable_parallel_tool_use: bool | None = None


class MessagesThinking(Struct):
  type: Literal["enabled", "disabled", "adaptive"]


class OutputConfig(Struct):
  """What the answer is to be. `effort` is for those models that know how much to think."""
  format: JsonSchemaFormat | None = None
  effort: str | None = None


class CountTokensRequest(Struct, kw_only=True):
  messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
  model: str | None = None
  system: str | list[Block] | None = None
  tools: Annotated[list[MessagesTool], Meta(max_length=MAX_TOOLS)] | None = None
  tool_choice: MessagesToolChoice | None = None
  thinking: MessagesThinking | None = None

  @property
  def left_out(self) -> list[str]:
    """Kinds of tools that only a hosted service runs."""
    return functions_of(self.tools or ())[1]

  def chat(self) -> ChatCompletionRequest:
    """The same as a chat. Raises `InvalidRequestError` for content that is not text."""
    messages = [ChatMessage("system", _joined(self.system, "system"))] if self.system else []
    for message in self.messages:
      messages.extend(_messages(message))
    choice = self.tool_choice
    thinks = None if self.thinking is None else {"enable_thinking": self.thinking.type != "disabled"}
    return ChatCompletionRequest(
        messages=messages,
        model=self.model,
        tools=functions_of(self.tools or ())[0] or None,
        tool_choice=_choice(choice),
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
        chat_template_kwargs=thinks,
        continue_final_message=messages[-1].role == "assistant" and not messages[-1].tool_calls,
    )


class MessagesRequest(CountTokensRequest, kw_only=True):
  max_tokens: PositiveCount
  temperature: Fraction | None = None
  top_p: Fraction | None = None
  top_k: Count | None = None
  stop_sequences: list[str] | None = None
  output_config: OutputConfig | None = None
  output_format: JsonSchemaFormat | None = None  # of before there was output_config
  stream: bool | None = None

  def chat(self) -> ChatCompletionRequest:
    chat = super().chat()
    chat.max_tokens, chat.stream = self.max_tokens, self.stream
    chat.temperature, chat.top_p, chat.top_k = self.temperature, self.top_p, self.top_k
    chat.stop = self.stop_sequences
    form = self.output_config.format if self.output_config is not None else None
    if (form := form or self.output_format) is not None:
      chat.response_format = ResponseFormat("json_schema", form)
    return chat


def _choice(choice: MessagesToolChoice | None) -> Any:
  if choice is None:
    return None
  if choice.type == "tool":
    if choice.name is None:
      raise InvalidRequestError("tool_choice: type tool needs a name", "tool_choice")
    return NamedToolChoice(ToolName(choice.name))
  return {"any": "required"}.get(choice.type, choice.type)


_PASSED_OVER = frozenset({
    "thinking", "redacted_thinking", "server_tool_use", "mcp_tool_use", "container_upload", "fallback"
})


def _is_passed_over(kind: str) -> bool:
  """What the model thought, and what a hosted service did of itself."""
  return kind in _PASSED_OVER or (kind.endswith("_tool_result") and kind != "tool_result")


def _blocks(content: Any, param: str) -> list[Block]:
  if isinstance(content, str) or content is None:
    return [Block("text", content or "")]
  try:
    return convert(content, list[Block])
  except ValidationError as error:
    raise InvalidRequestError(f"{param}: {error}", param) from None


def _joined(content: Any, param: str, below: int = 4) -> str:
  """Blocks that are text, joined. Raises `InvalidRequestError` for others."""
  return "".join(_text(block, param, below) for block in _blocks(content, param) if not _is_passed_over(block.type))


def _text(block: Block, param: str, below: int = 4) -> str:
  """A block as text. Documents and what searches found stand between tags, with what they are called."""
  if block.type == "text" and block.text is not None:
    return block.text
  if block.type == "document" and isinstance(block.source, Source) and below:
    kind = block.source.type
    if kind == "text" and block.source.data is not None:
      return _tagged("document", block.source.data, title=block.title, context=block.context)
    if kind == "content":
      return _tagged(
          "document", _joined(block.source.content, param, below - 1), title=block.title, context=block.context
      )
    raise InvalidRequestError(f"{param}: a document of {kind[:40]!r} cannot be understood, only text can", param)
  if block.type == "search_result" and below:
    source = block.source if isinstance(block.source, str) else None
    return _tagged("search_result", _joined(block.content, param, below - 1), title=block.title, source=source)
  raise InvalidRequestError(f"{param}: a block of type {block.type[:40]!r} cannot be understood, only text can", param)


def _tagged(tag: str, text: str, **attributes: str | None) -> str:
  told = "".join(f" {name}={json.dumps(value, ensure_ascii=False)}" for name, value in attributes.items() if value)
  return f"<{tag}{told}>\n{text}\n</{tag}>\n"


def _messages(message: Message) -> list[ChatMessage]:
  """A message as one or several: results of tools stand apart."""
  if isinstance(message.content, str):
    return [ChatMessage(message.role, message.content)]
  out: list[ChatMessage] = []
  texts: list[str] = []
  calls: list[ToolCall] = []
  for block in message.content:
    if block.type == "tool_use" and block.name is not None:
      if message.role != "assistant":
        raise InvalidRequestError(
            "messages: a tool_use stands in a message of the assistant, and its tool_result in the next of the user",
            "messages"
        )
      calls.append(ToolCall(FunctionCall(block.name, json.dumps(block.input or {})), block.id))
    elif block.type == "tool_result":
      text = _joined(block.content, "messages")
      out.append(ChatMessage("tool", f"Error: {text}" if block.is_error else text, tool_call_id=block.tool_use_id))
    elif not _is_passed_over(block.type):
      texts.append(_text(block, "messages"))
  if calls:
    out.append(ChatMessage(message.role, "".join(texts) or None, tool_calls=calls))
  elif texts or not out:
    out.append(ChatMessage(message.role, "".join(texts)))
  return out
