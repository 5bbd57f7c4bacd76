"""The bodies of Ollama's routes, and how they become chats."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from exo.api.chat_request import (
    MAX_MESSAGES,
    MAX_TOOLS,
    ChatCompletionRequest,
    ChatMessage,
    FunctionCall,
    JsonSchemaFormat,
    ResponseFormat,
    Tool,
    ToolCall,
)
from exo.api.schema import Fraction, Penalty, SamplingFields, Seed, Temperature, check_depth
from exo.errors import InvalidRequestError


class OllamaOptions(Struct):
  num_predict: int | None = None
  temperature: Temperature | None = None
  top_p: Fraction | None = None
  top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
  min_p: Fraction | None = None
  seed: Seed | None = None
  stop: str | list[str] | None = None
  repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
  presence_penalty: Penalty | None = None
  frequency_penalty: Penalty | None = None


class OllamaFunction(Struct):
  name: str
  arguments: dict[str, Any] | None = None


class OllamaToolCall(Struct):
  function: OllamaFunction


class OllamaMessage(Struct):
  role: str
  content: str | None = None
  thinking: str | None = None
  images: list[Any] | None = None
  tool_calls: list[OllamaToolCall] | None = None
  tool_name: str | None = None


class OllamaRequest(Struct, kw_only=True):
  """What `/api/chat` and `/api/generate` share."""
  model: str | None = None
  format: str | dict[str, Any] | None = None
  options: OllamaOptions | None = None
  stream: bool | None = None
  think: bool | str | None = None

  @property
  def streams(self) -> bool:
    return self.stream is not False  # unlike elsewhere, a stream is what one gets

  @property
  def model_name(self) -> str | None:
    return self.model.removesuffix(":latest") if self.model else None

  def fill(self, body: SamplingFields) -> None:
    """Set the sampling fields from the options."""
    options = self.options or OllamaOptions()
    body.model, body.stream = self.model_name, self.streams
    body.temperature, body.top_p, body.top_k, body.min_p = options.temperature, options.top_p, options.top_k, options.min_p
    body.seed, body.stop, body.repetition_penalty = options.seed, options.stop, options.repeat_penalty
    body.presence_penalty, body.frequency_penalty = options.presence_penalty, options.frequency_penalty
    if options.num_predict is not None and options.num_predict > 0:
      body.max_tokens = options.num_predict

  def _as_chat(self, messages: list[ChatMessage], tools: list[Tool] | None = None) -> ChatCompletionRequest:
    body = ChatCompletionRequest(messages=messages, tools=tools, response_format=self._format())
    self.fill(body)
    if self.think is not None:
      body.chat_template_kwargs = {"enable_thinking": bool(self.think)}
    return body

  def _format(self) -> ResponseFormat | None:
    if not self.format:
      return None
    if isinstance(self.format, dict):
      check_depth(self.format, "format")
      return ResponseFormat("json_schema", JsonSchemaFormat(schema=self.format))
    if self.format != "json":
      raise InvalidRequestError(f"format: {self.format[:40]!r} is neither \"json\" nor a schema", "format")
    return ResponseFormat("json_object")


class OllamaChatRequest(OllamaRequest, kw_only=True):
  messages: Annotated[list[OllamaMessage], Meta(max_length=MAX_MESSAGES)] = field(default_factory=list)
  tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None

  def chat(self) -> ChatCompletionRequest:
    return self._as_chat([_message(message) for message in self.messages], self.tools)


class OllamaGenerateRequest(OllamaRequest, kw_only=True):
  prompt: str = ""
  system: str | None = None
  raw: bool | None = None
  suffix: str | None = None
  images: list[Any] | None = None

  def chat(self) -> ChatCompletionRequest:
    if self.suffix or self.images:
      raise InvalidRequestError("suffix and images are not supported", "suffix" if self.suffix else "images")
    messages = [ChatMessage("system", self.system)] if self.system else []
    return self._as_chat([*messages, ChatMessage("user", self.prompt)])


class OllamaShowRequest(Struct):
  model: str | None = None
  name: str | None = None


def _message(message: OllamaMessage) -> ChatMessage:
  if message.images:
    raise InvalidRequestError("messages: images cannot be understood, only text can", "messages")
  calls = [
      ToolCall(FunctionCall(call.function.name, call.function.arguments or {})) for call in message.tool_calls or ()
  ]
  content = message.content if message.content is not None or calls else ""
  return ChatMessage(message.role, content, message.tool_name, calls or None, reasoning_content=message.thinking)
