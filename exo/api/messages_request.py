"""The body of Anthropic's Messages API, and how it becomes a chat."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from exo.api.chat_request import (
    MAX_MESSAGES,
    MAX_TOOLS,
    ChatCompletionRequest,
    ChatMessage,
    FunctionCall,
    FunctionDefinition,
    FunctionName,
    NamedToolChoice,
    Tool,
    ToolCall,
    ToolName,
)
from exo.api.schema import Count, Fraction, PositiveCount
from exo.errors import InvalidRequestError


class Block(Struct):
  """A part of a message: text, a tool's use or result, or the model's thinking."""
  type: str
  text: str | None = None
  id: str | None = None
  name: str | None = None
  input: dict[str, Any] | None = None
  tool_use_id: str | None = None
  content: str | list[Block] | None = None
  thinking: str | None = None


class Message(Struct):
  role: Literal["user", "assistant", "system"]
  content: str | list[Block]


class MessagesTool(Struct):
  name: FunctionName
  description: str | None = None
  input_schema: dict[str, Any] | None = None
  type: str | None = None


class MessagesToolChoice(Struct):
  type: Literal["auto", "any", "tool", "none"]
  name: str | None = None
  disable_parallel_tool_use: bool | None = None


class CountTokensRequest(Struct, kw_only=True):
  messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
  model: str | None = None
  system: str | list[Block] | None = None
  tools: Annotated[list[MessagesTool], Meta(max_length=MAX_TOOLS)] | None = None
  tool_choice: MessagesToolChoice | None = None

  def chat(self) -> ChatCompletionRequest:
    """The same as a chat. Raises `InvalidRequestError` for content that is not text."""
    messages = [ChatMessage("system", _joined(self.system, "system"))] if self.system else []
    for message in self.messages:
      messages.extend(_messages(message))
    choice = self.tool_choice
    return ChatCompletionRequest(
        messages=messages,
        model=self.model,
        tools=[Tool(FunctionDefinition(t.name, t.description, t.input_schema)) for t in self.tools or ()] or None,
        tool_choice=_choice(choice),
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
    )


class MessagesRequest(CountTokensRequest, kw_only=True):
  max_tokens: PositiveCount
  temperature: Fraction | None = None
  top_p: Fraction | None = None
  top_k: Count | None = None
  stop_sequences: list[str] | None = None
  stream: bool | None = None

  def chat(self) -> ChatCompletionRequest:
    chat = super().chat()
    chat.max_tokens, chat.stream = self.max_tokens, self.stream
    chat.temperature, chat.top_p, chat.top_k = self.temperature, self.top_p, self.top_k
    chat.stop = self.stop_sequences
    return chat


def _choice(choice: MessagesToolChoice | None) -> Any:
  if choice is None:
    return None
  if choice.type == "tool":
    if choice.name is None:
      raise InvalidRequestError("tool_choice: type tool needs a name", "tool_choice")
    return NamedToolChoice(ToolName(choice.name))
  return {"any": "required"}.get(choice.type, choice.type)


def _joined(content: str | list[Block] | None, param: str) -> str:
  """Text blocks joined."""
  if not isinstance(content, list):
    return content or ""
  if any(block.type != "text" or block.text is None for block in content):
    raise InvalidRequestError(f"{param}: only text can be understood here", param)
  return "".join(block.text or "" for block in content)


def _messages(message: Message) -> list[ChatMessage]:
  """A message as one or several: results of tools stand apart."""
  if isinstance(message.content, str):
    return [ChatMessage(message.role, message.content)]
  out: list[ChatMessage] = []
  texts: list[str] = []
  calls: list[ToolCall] = []
  for block in message.content:
    if block.type == "text" and block.text is not None:
      texts.append(block.text)
    elif block.type == "tool_use" and block.name is not None:
      calls.append(ToolCall(FunctionCall(block.name, json.dumps(block.input or {})), block.id))
    elif block.type == "tool_result":
      out.append(ChatMessage("tool", _joined(block.content, "messages"), tool_call_id=block.tool_use_id))
    elif block.type not in ("thinking", "redacted_thinking"):
      raise InvalidRequestError(f"messages: a block of type {block.type[:40]!r} cannot be understood", "messages")
  if calls:
    out.append(ChatMessage(message.role, "".join(texts) or None, tool_calls=calls))
  elif texts or not out:
    out.append(ChatMessage(message.role, "".join(texts)))
  return out
