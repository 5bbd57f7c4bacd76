"""The bodies of Ollama's routes, and how they become chats."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct, field

from exo.api.chat_request import (
    MAX_MESSAGES,
    MAX_TOOLS,
    ChatCompletionRequest,
    ChatMessage,
    FunctionCall,
    FunctionDefinition,
    Tool,
    ToolCall,
)
from exo.api.constraints import JsonSchemaFormat, ResponseFormat
from exo.api.schema import (
    Fraction,
    Guard,
    LastTokens,
    MirostatVersion,
    Penalty,
    SamplingFields,
    Seed,
    Surprise,
    Temperature,
    Typical,
    check_depth,
)
from exo.api.tool_names import LONGEST, ToolNames
from exo.errors import InvalidRequestError

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_FOR_EVER_S = 10 * 365 * 86400.0


class OllamaOptions(Struct):
  """Those that say how a model is loaded are for the node to decide, and are passed over."""
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
  typical_p: Typical | None = None
  repeat_last_n: LastTokens | None = None
  mirostat: MirostatVersion | None = None
  mirostat_tau: Surprise | None = None
  mirostat_eta: Fraction | None = None
  tfs_z: float | None = None
  penalize_newline: bool | None = None
  repetition_guard: Guard = True


class OllamaFunction(Struct):
  name: str
  arguments: dict[str, Any] | str | None = None


class OllamaToolCall(Struct):
  function: OllamaFunction


class OllamaToolDefinition(Struct):
  """Of any name, as long as it is one."""
  name: Annotated[str, Meta(min_length=1, max_length=LONGEST)]
  description: str | None = None
  parameters: dict[str, Any] | None = None


class OllamaTool(Struct):
  function: OllamaToolDefinition
  type: str | None = None


class OllamaMessage(Struct):
  role: str
  content: str | None = None
  thinking: str | None = None
  images: list[Any] | None = None
  tool_calls: list[OllamaToolCall] | None = None
  tool_name: str | None = None
  tool_call_id: str | None = None


class OllamaRequest(Struct, kw_only=True):
  """What `/api/chat` and `/api/generate` share. `nothing` is a piece of an answer in which there is no text."""
  nothing: ClassVar[dict[str, Any]]

  model: str | None = None
  format: str | dict[str, Any] | None = None
  options: OllamaOptions | None = None
  stream: bool | None = None
  think: bool | Literal["low", "medium", "high"] | None = None
  keep_alive: int | float | str | None = None

  @property
  def keeps_s(self) -> float | None:
    """For how long the model is to stay when nobody uses it; None: until its room is needed. Raises `InvalidRequestError`."""
    return None if self.keep_alive is None else duration_s(self.keep_alive)

  @property
  def unloads(self) -> bool:
    """The model is to leave memory afterwards. Raises `InvalidRequestError` for what is no duration."""
    return self.keeps_s == 0

  @property
  def streams(self) -> bool:
    return self.stream is not False  # unlike elsewhere, a stream is what one gets

  def fill(self, body: SamplingFields) -> None:
    """Set the sampling fields from the options."""
    options = self.options or OllamaOptions()
    body.model, body.stream = self.model, self.streams
    body.temperature, body.top_p, body.top_k, body.min_p = options.temperature, options.top_p, options.top_k, options.min_p
    body.seed, body.stop, body.repetition_penalty = options.seed, options.stop, options.repeat_penalty
    body.presence_penalty, body.frequency_penalty = options.presence_penalty, options.frequency_penalty
    body.typical_p, body.repeat_last_n = options.typical_p, options.repeat_last_n
    body.repetition_guard = options.repetition_guard
    body.mirostat, body.mirostat_tau, body.mirostat_eta = options.mirostat, options.mirostat_tau, options.mirostat_eta
    undone = {"tfs_z": options.tfs_z not in (None, 1), "penalize_newline": options.penalize_newline is False}
    if (name := next((name for name, asked in undone.items() if asked), None)) is not None:
      raise InvalidRequestError(f"options: {name} is not done here, leave it out", "options")
    if options.num_predict is not None and options.num_predict > 0:
      body.max_tokens = options.num_predict

  def _as_chat(self, messages: list[ChatMessage], tools: list[Tool] | None = None) -> ChatCompletionRequest:
    body = ChatCompletionRequest(messages=messages, tools=tools, response_format=self.response_format)
    self.fill(body)
    if self.think is not None:
      body.chat_template_kwargs = {"enable_thinking": bool(self.think), "thinking": bool(self.think)}  # by family
    if body.chat_template_kwargs and isinstance(self.think, str):
      body.chat_template_kwargs["reasoning_effort"] = self.think
    last = messages[-1]
    begun = len(messages) > 1 and last.role == "assistant" and not last.tool_calls and bool(last.content)
    body.continue_final_message = begun and not self.format  # JSON begins by itself
    return body

  @property
  def response_format(self) -> ResponseFormat | None:
    """What `format` means. Raises `InvalidRequestError`."""
    if not self.format:
      return None
    if isinstance(self.format, dict):
      check_depth(self.format, "format")
      return ResponseFormat("json_schema", JsonSchemaFormat(schema=self.format, strict=False))
    if self.format != "json":
      raise InvalidRequestError(f"format: {self.format[:40]!r} is neither \"json\" nor a schema", "format")
    return ResponseFormat("json_object")


class OllamaChatRequest(OllamaRequest, kw_only=True):
  nothing: ClassVar[dict[str, Any]] = {"message": {"role": "assistant", "content": ""}}

  messages: Annotated[list[OllamaMessage], Meta(max_length=MAX_MESSAGES)] = field(default_factory=list)
  tools: Annotated[list[OllamaTool], Meta(max_length=MAX_TOOLS)] | None = None

  def chat(self, names: ToolNames) -> ChatCompletionRequest:
    tools = [
        Tool(
            FunctionDefinition(names.written(tool.function.name), tool.function.description, tool.function.parameters)
        ) for tool in self.tools or ()
    ]
    return self._as_chat([_message(message, names) for message in self.messages], tools or None)


class OllamaGenerateRequest(OllamaRequest, kw_only=True):
  nothing: ClassVar[dict[str, Any]] = {"response": ""}

  prompt: str = ""
  system: str | None = None
  raw: bool | None = None
  suffix: str | None = None
  template: str | None = None
  images: list[Any] | None = None
  context: list[Annotated[int, Meta(ge=0, lt=2**31)]] | None = None

  def chat(self) -> ChatCompletionRequest:
    if self.images:
      raise InvalidRequestError("images: pictures cannot be understood, only text can", "images")
    if self.template:
      raise InvalidRequestError(
          "template: the model's own is used; render the prompt yourself and send it with raw: true", "template"
      )
    messages = [ChatMessage("system", self.system)] if self.system else []
    return self._as_chat([*messages, ChatMessage("user", self.prompt)])


def duration_s(value: str | float) -> float | None:
  """Seconds of a duration as Ollama takes it: 300, "5m", "1h30m"; None: for ever, as what is negative means. Raises
  `InvalidRequestError`."""
  text = str(value).strip()
  if text.startswith("-") and text[1:2] not in ("", "-"):
    duration_s(text[1:])
    return None
  try:
    seconds = float(text)
  except ValueError:
    if not _DURATION.fullmatch(text):
      raise InvalidRequestError(
          f"keep_alive: {text[:40]!r} is no duration, as 300, \"5m\" or -1", "keep_alive"
      ) from None
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
  return seconds if seconds < _FOR_EVER_S else None


def _message(message: OllamaMessage, names: ToolNames) -> ChatMessage:
  if message.images:
    raise InvalidRequestError("messages: images cannot be understood, only text can", "messages")
  calls = [
      ToolCall(FunctionCall(names.written(call.function.name), call.function.arguments or {}))
      for call in message.tool_calls or ()
  ]
  # only an assistant that calls says nothing beside
  content = message.content if message.content is not None or (calls and message.role == "assistant") else ""
  tool = None if message.tool_name is None else names.written(message.tool_name)
  return ChatMessage(
      message.role, content, tool, calls or None, message.tool_call_id, reasoning_content=message.thinking
  )
