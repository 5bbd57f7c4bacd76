"""One chat on the ring: the internal form that every chat route reads its answer from."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from exo.api.asked_model import asked_model
from exo.api.chat_parts import AnswerParser, CallArguments, CallBegin, Content, Part, Reasoning
from exo.api.chat_prompt import ChatPrompt, chat_prompt
from exo.api.chat_request import ChatCompletionRequest
from exo.api.response_reader import ResponseReader
from exo.api.text_run import TextRun, new_id, text_run
from exo.inference.sampling import SamplingParams
from exo.networking.messages import PromptProgress
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.node import Node
from exo.orchestration.text_stream import TextDelta, TextToken


@dataclass(frozen=True, slots=True)
class ChatDelta:
  """What is new of one choice. `tokens` are those of the content, if asked for."""
  choice: int
  parts: tuple[Part, ...]
  tokens: tuple[TextToken, ...] = ()
  finish_reason: str = ""
  stop: str | None = None
  progress: PromptProgress | None = None


@dataclass
class Call:
  id: str
  name: str
  arguments: str = ""


@dataclass
class ChatChoice:
  """A whole answer."""
  content: str = ""
  reasoning: str = ""
  calls: list[Call] = field(default_factory=list)
  tokens: list[TextToken] = field(default_factory=list)
  finish_reason: str = "stop"
  stop: str | None = None

  def add(self, delta: ChatDelta, run: ChatRun) -> None:
    for part in delta.parts:
      match part:
        case Content(text):
          self.content += text
        case Reasoning(text):
          self.reasoning += text
        case CallBegin(_, name):
          self.calls.append(Call(run.new_call_id(), name))
        case CallArguments(index, text):
          self.calls[index].arguments += text
    self.tokens.extend(delta.tokens)
    if delta.finish_reason:
      self.finish_reason, self.stop = delta.finish_reason, delta.stop


class ChatRun:
  """Iterate for deltas, or `collect` the whole answer."""
  def __init__(self, run: TextRun, prompt: ChatPrompt) -> None:
    self._run, self._prompt = run, prompt
    self._parsers: list[AnswerParser] = [prompt.parser() for _ in run.choices]
    self._plain = prompt.plain
    self._tokens: list[list[TextToken]] = [[] for _ in run.choices]  # of content that the parser still holds
    self.reasoning_tokens = 0

  @property
  def id(self) -> str:
    return self._run.id

  @property
  def created(self) -> int:
    return self._run.created

  @property
  def model(self) -> ModelInfo:
    return self._run.model

  @property
  def circled(self) -> set[int]:
    """Choices that the guard against repetition has ended."""
    return self._run.circled

  @property
  def n(self) -> int:
    return len(self._parsers)

  @property
  def more(self) -> bool:
    """The next delta will come without waiting."""
    return self._run.more

  def notices(self) -> list[str]:
    """What happened since the last call that a client may want to hear of."""
    return self._run.notices()

  @property
  def relaxed(self) -> tuple[str, ...]:
    """What of the request's schemas the answer is not held to."""
    return self._prompt.relaxed

  @property
  def exact(self) -> bool:
    return self._run.exact

  @property
  def sampling(self) -> SamplingParams:
    """As asked for, or as the model's defaults have it."""
    return self._run.sampling

  @property
  def token_ids(self) -> tuple[int, ...]:
    return self._run.token_ids

  @property
  def prompt_tokens(self) -> int:
    return self._run.prompt_tokens

  @property
  def completion_tokens(self) -> int:
    return self._run.completion_tokens

  @property
  def cached_tokens(self) -> int:
    return self._run.cached_tokens

  @property
  def timings(self) -> dict[str, float]:
    return self._run.timings

  @property
  def usage(self) -> dict[str, Any]:
    return self._run.usage | {"completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens}}

  def new_call_id(self) -> str:
    form = self._prompt.form
    return uuid.uuid4().hex[:form.id_length] if form and form.id_length else f"call_{uuid.uuid4().hex[:24]}"

  def __aiter__(self) -> AsyncIterator[ChatDelta]:
    return self

  async def __anext__(self) -> ChatDelta:
    before = self._run.completion_tokens
    delta = await self._run.__anext__()
    if delta.progress is not None:
      return ChatDelta(delta.choice, (), progress=delta.progress)
    if self._plain:
      parts: tuple[Part, ...] = (Content(delta.text), ) if delta.text else ()
      return ChatDelta(delta.choice, parts, delta.tokens, delta.finish_reason, delta.stop)
    return await self._parsed(delta, self._run.completion_tokens - before)

  async def _parsed(self, delta: TextDelta, tokens: int) -> ChatDelta:
    parser, held = self._parsers[delta.choice], self._tokens[delta.choice]
    if parser.thinking:
      self.reasoning_tokens += tokens
    if isinstance(parser, ResponseReader):
      parts = await asyncio.to_thread(_read, parser, delta)  # it waits for a process
    else:
      parts = _read(parser, delta)
    held.extend(delta.tokens)
    shown: tuple[TextToken, ...] = ()
    if any(isinstance(part, Content) for part in parts):
      shown = tuple(held)
    if parts:
      held.clear()
    finish = "tool_calls" if delta.finish_reason == "stop" and parser.called else delta.finish_reason
    return ChatDelta(delta.choice, tuple(parts), shown, finish, delta.stop)

  async def collect(self) -> list[ChatChoice]:
    choices = [ChatChoice() for _ in self._parsers]
    async for delta in self:
      choices[delta.choice].add(delta, self)
    return choices


def _read(parser: AnswerParser, delta: TextDelta) -> list[Part]:
  parts = parser.push(delta.text)
  return [*parts, *parser.finish()] if delta.finish_reason else parts


@asynccontextmanager
async def chat_run(node: Node,
                   body: ChatCompletionRequest,
                   prefix: str = "chatcmpl-",
                   *,
                   after: Sequence[int] = ()) -> AsyncIterator[ChatRun]:
  """Run a chat, which may go on `after` tokens of an earlier one; leaving the block ends it everywhere.

  Raises what the request is refused with.
  """
  top_logprobs = body.token_logprobs
  model = await asked_model(node, body.model)
  prompt = await chat_prompt(node.config, model, body, after=after)
  max_tokens = body.most_tokens
  async with text_run(
      node,
      model,
      body,
      prompt.ids,
      max_tokens,
      request_id=new_id(prefix),
      top_logprobs=top_logprobs,
      grammar=prompt.grammar,
      visible=prompt.visible,
      is_chat=True,
      continued=prompt.continued,
      title=body.title
  ) as run:
    yield ChatRun(run, prompt)
