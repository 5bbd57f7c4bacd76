"""The body of OpenAI's Responses API, and how it becomes a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from exo.api.chat_request import (
    MAX_MESSAGES,
    MAX_TOOLS,
    ChatCompletionRequest,
    ChatMessage,
)
from exo.api.constraints import JsonSchemaFormat, ResponseFormat
from exo.api.response_items import messages_of
from exo.api.response_tools import ResponseTool, ResponseToolChoice, ToolSet
from exo.api.schema import Fraction, Guard, PositiveCount, Temperature
from exo.errors import InvalidRequestError

Metadata = Annotated[dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
                     Meta(max_length=16)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Items = Annotated[list[dict[str, Any]], Meta(max_length=MAX_MESSAGES)]

_LOGPROBS = "message.output_text.logprobs"
_EFFORTS: dict[str, str] = {"minimal": "low", "xhigh": "high", "max": "high"}  # as templates know them
_VERBOSITY = {"low": "Keep your answer short.", "high": "Answer at length and in detail."}
# what would change the answer, and why it is not done
_NOT_DONE = {
    "background": "answers are only given to who waits for them: leave it out, or send stream",
    "prompt": "templates of prompts are kept by hosted services: send instructions and input",
    "context_management": "nothing is compacted by itself: POST /v1/responses/compact does it, truncation: \"auto\" drops the oldest",
    "moderation": "answers are not judged here: leave it out",
}


class TextFormat(Struct):
  type: Literal["text", "json_object", "json_schema"]
  name: str | None = None
  schema: dict[str, Any] | bool | None = None
  strict: bool | None = None
  description: str | None = None


class TextOptions(Struct):
  format: TextFormat | None = None
  verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Struct):
  effort: Effort | None = None
  summary: str | None = None
  generate_summary: str | None = None


class ConversationId(Struct):
  id: str


class ResponsesRequest(Struct, kw_only=True):
  input: str | Items | None = None
  model: str | None = None
  instructions: str | None = None
  max_output_tokens: PositiveCount | None = None
  max_tool_calls: PositiveCount | None = None
  temperature: Temperature | None = None
  top_p: Fraction | None = None
  top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
  stream: bool | None = None
  tools: Annotated[list[ResponseTool], Meta(max_length=MAX_TOOLS)] | None = None
  tool_choice: Literal["none", "auto", "required"] | ResponseToolChoice | None = None
  parallel_tool_calls: bool | None = None
  text: TextOptions | None = None
  reasoning: ReasoningOptions | None = None
  truncation: Literal["auto", "disabled"] | None = None
  include: Annotated[list[str], Meta(max_length=64)] | None = None
  store: bool | None = None
  previous_response_id: str | None = None
  conversation: str | ConversationId | None = None
  metadata: Metadata | None = None
  service_tier: str | None = None
  user: str | None = None
  safety_identifier: str | None = None
  prompt_cache_key: str | None = None
  prompt_cache_retention: str | None = None
  repetition_guard: Guard = True
  background: bool | None = None
  prompt: Any = None
  context_management: Any = None
  moderation: Any = None

  @property
  def items(self) -> list[dict[str, Any]]:
    """The input as items, a text as the message that it is."""
    if isinstance(self.input, str):
      return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": self.input}]}]
    return self.input or []

  @property
  def conversation_id(self) -> str | None:
    return self.conversation.id if isinstance(self.conversation, ConversationId) else self.conversation

  @property
  def logprobs(self) -> int | None:
    """How many alternatives each token's log probability comes with; None: no log probabilities."""
    if self.top_logprobs or _LOGPROBS in (self.include or ()):
      return self.top_logprobs or 0
    return None

  def check(self) -> None:
    """Raises `InvalidRequestError` that names what this server does not do."""
    for name, reason in _NOT_DONE.items():
      value = getattr(self, name)
      if value is not None and not (name == "background" and value is False):
        raise InvalidRequestError(f"{name}: {reason}", name)
    if self.previous_response_id is not None and self.conversation is not None:
      raise InvalidRequestError(
          "previous_response_id and conversation name two beginnings: send one of them", "conversation"
      )

  def chat(self, tools: ToolSet, items: Sequence[dict[str, Any]]) -> ChatCompletionRequest:
    """The same as a chat, of these items: what was there before, and the input. Raises `InvalidRequestError`."""
    offered, choice = tools.choose(self.tool_choice)
    return ChatCompletionRequest(
        messages=self._messages(tools, items),
        model=self.model,
        max_completion_tokens=self.max_output_tokens,
        temperature=self.temperature,
        top_p=self.top_p,
        stream=self.stream,
        logprobs=True if self.logprobs is not None else None,
        top_logprobs=self.logprobs,
        tools=offered,
        tool_choice=choice,
        parallel_tool_calls=self.parallel_tool_calls,
        response_format=_format(self.text.format if self.text else None),
        chat_template_kwargs=self._thinking(),
        repetition_guard=self.repetition_guard,
    )

  def _messages(self, tools: ToolSet, items: Sequence[dict[str, Any]]) -> list[ChatMessage]:
    told = [self.instructions or "", _VERBOSITY.get(self.text.verbosity or "", "") if self.text else ""]
    instructions = "\n\n".join(text for text in told if text)
    messages = messages_of(items, tools)
    if not messages:
      raise InvalidRequestError("input: there is no message", "input")
    return [ChatMessage("system", instructions), *messages] if instructions else messages

  def _thinking(self) -> dict[str, Any] | None:
    """How much to think, by the words of those templates that know any."""
    effort = self.reasoning.effort if self.reasoning is not None else None
    if effort is None:
      return None
    return {"enable_thinking": False} if effort == "none" else {"reasoning_effort": _EFFORTS.get(effort, effort)}

  def echo(self) -> dict[str, Any]:
    """What a response says of the request that it answers."""
    choice = self.tool_choice or "auto"
    reasoning, text = self.reasoning, self.text
    return {
        "instructions": self.instructions, "max_output_tokens": self.max_output_tokens,
        "max_tool_calls": self.max_tool_calls, "parallel_tool_calls": self.parallel_tool_calls is not False,
        "previous_response_id": self.previous_response_id, "metadata": self.metadata or {},
        "text": {"format": (text.format if text and text.format else {"type": "text"})} |
        ({"verbosity": text.verbosity} if text and text.verbosity else {}), "tool_choice": choice
        if isinstance(choice, str) else _given(choice), "tools": [_described(tool) for tool in self.tools or ()],
        "truncation": self.truncation or "disabled", "reasoning": {
            "effort": reasoning.effort if reasoning else None, "summary": reasoning.summary if reasoning else None
        }, "service_tier": self.service_tier or "default", "top_logprobs": self.top_logprobs or 0, "background": False,
        "conversation": {"id": self.conversation_id} if self.conversation_id else None
    } | {
        name: value
        for name in ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
        if (value := getattr(self, name)) is not None
    }


def _given(value: Struct) -> dict[str, Any]:
  """The fields that are there."""
  return {name: field for name in value.__struct_fields__ if (field := getattr(value, name)) is not None}


def _described(tool: ResponseTool) -> dict[str, Any]:
  told = _given(tool)
  if tool.tools is not None:
    told["tools"] = [_described(inner) for inner in tool.tools]
  if tool.type == "function":
    told = {"description": None, "parameters": None} | told | {"strict": bool(tool.strict)}
  return told


def _format(wanted: TextFormat | None) -> ResponseFormat | None:
  if wanted is None:
    return None
  return ResponseFormat(wanted.type, JsonSchemaFormat(wanted.name, wanted.description, wanted.schema, wanted.strict))
