"""One request on the ring as a stream of text: what chat and text completions have in common."""

from __future__ import annotations

import asyncio
import functools
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Container, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from exo.api.caller import caller
from exo.api.exact import tell_exact
from exo.api.schema import SamplingFields
from exo.errors import ExoError
from exo.inference.sampling import SamplingParams, TokenLogprob
from exo.networking.messages import PromptProgress
from exo.orchestration.activity import WatchedRequest
from exo.orchestration.generation import Generation, GenerationSpec
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.node import Node
from exo.orchestration.text_stream import ChoiceText, TextDelta
from exo.repetition import STOP_REASON
from exo.sampling_defaults import SamplingDefaults

LEAST_LOGPROB = -9999.0  # as OpenAI writes what has no chance at all; JSON has no infinities


@dataclass
class TextRun:
  """Iterate for text; `usage` is right at any moment. `prompt_logprobs` fills before the first text, if asked for."""
  id: str
  created: int
  model: ModelInfo
  generation: Generation
  choices: list[ChoiceText]
  watched: WatchedRequest
  prompt_logprobs: tuple[TokenLogprob, ...] = ()
  finish_reasons: dict[int, str] = field(default_factory=dict)
  cached_tokens: int = 0  # of the prompt, found in a kept cache
  begun_at: float = field(default_factory=time.monotonic)
  first_at: float = 0.0  # when the first token came
  stopped: bool = False  # the first choice, by a text of the request's or the guard against repetition
  circled: set[int] = field(default_factory=set)  # choices that the guard has ended

  def __aiter__(self) -> AsyncIterator[TextDelta]:
    return self

  async def __anext__(self) -> TextDelta:
    told = len(self.generation.resumptions)
    try:
      delivery = await self.generation.event()
    except ExoError as error:
      self.watched.fails(error)
      raise
    if isinstance(delivery, PromptProgress):
      return TextDelta(0, "", (), progress=delivery)
    self.watched.resumed(len(self.generation.resumptions) - told)
    self.first_at = self.first_at or time.monotonic()
    if delivery.choice == 0 and delivery.index == 0:
      self.cached_tokens = delivery.cached_tokens
    if delivery.prompt_logprobs:
      self.prompt_logprobs = delivery.prompt_logprobs
    delta = self.choices[delivery.choice].push(delivery)
    self.watched.said(delta.choice, delta.text, len(delivery.tokens), bool(delta.finish_reason))
    if delta.finish_reason:
      self.finish_reasons[delta.choice] = delta.finish_reason
      self.stopped = self.stopped or (delta.choice == 0 and (delta.stop is not None or delta.circles))
      if delta.circles:
        self.circled.add(delta.choice)
      self.generation.end_choice(delta.choice)
    return delta

  def notices(self) -> list[str]:
    """What a streaming client should be told beside the text, once each."""
    told = [str(resumption) for resumption in self.generation.resumptions]
    self.generation.resumptions.clear()
    return told

  @property
  def more(self) -> bool:
    """The next text will come without waiting."""
    return self.generation.pending

  @property
  def exact(self) -> bool:
    """As in `Request`."""
    return self.generation.spec.exact

  @property
  def sampling(self) -> SamplingParams:
    return self.generation.spec.sampling

  @property
  def prompt_tokens(self) -> int:
    return len(self.generation.spec.prompt_ids)

  @property
  def token_ids(self) -> tuple[int, ...]:
    """Of the prompt and of the first choice's answer so far, with what ended that."""
    ended = self.finish_reasons.get(0) == "stop" and not self.stopped
    end = self.model.tokenizer.end_id if ended else None
    return (*self.generation.spec.prompt_ids, *self.generation.emitted(0), *(() if end is None else (end, )))

  @property
  def completion_tokens(self) -> int:
    return sum(choice.completion_tokens for choice in self.choices)

  @property
  def timings(self) -> dict[str, float]:
    """As llama.cpp's server tells them, of what has come so far; the prompt's time begins when the request was taken."""
    return told_timings([self])

  @property
  def usage(self) -> dict[str, Any]:
    return {
        "prompt_tokens": self.prompt_tokens,
        "completion_tokens": self.completion_tokens,
        "total_tokens": self.prompt_tokens + self.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
    }


def told_timings(runs: Sequence[TextRun]) -> dict[str, float]:
  """Of all runs of one request, which run beside one another or follow one another."""
  now = time.monotonic()
  cached = sum(run.cached_tokens for run in runs)
  prompt_ms = sum((run.first_at or now) - run.begun_at for run in runs) * 1000
  predicted_ms = (now - min((run.first_at or now) for run in runs)) * 1000
  return {
      "cache_n": cached, **_timed("prompt",
                                  sum(run.prompt_tokens for run in runs) - cached, prompt_ms),
      **_timed("predicted", sum(run.completion_tokens for run in runs), predicted_ms)
  }


def _timed(name: str, count: int, ms: float) -> dict[str, float]:
  return {
      f"{name}_n": count, f"{name}_ms": round(ms, 3), f"{name}_per_token_ms": round(ms / count, 3) if count else 0.0,
      f"{name}_per_second": round(1000 * count / ms, 3) if ms > 0 else 0.0
  }


def new_id(prefix: str) -> str:
  return prefix + uuid.uuid4().hex


@asynccontextmanager
async def text_run(
    node: Node,
    model: ModelInfo,
    fields: SamplingFields,
    prompt_ids: Sequence[int],
    max_tokens: int | None,
    *,
    request_id: str,
    top_logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    grammar: str = "",
    visible: Iterable[int] = (),
    is_chat: bool = False,
    continued: bool = False,
    echoed: bool = False,
    title: str = "",
    end_ids: Iterable[int] = (),
) -> AsyncIterator[TextRun]:
  """Submit the prompt, which screens show as `title`; leaving the block ends the request everywhere.

  The prompt's text goes before the answer's when `echoed`, and the answer goes on with it when `continued`. Beside those that
  end any text, the tokens `end_ids` end this one.

  Raises `InvalidRequestError` for what cannot be.
  """
  param = "messages" if is_chat else "prompt"
  room = model.max_context - len(prompt_ids)
  if room < 0 or (room == 0 and max_tokens != 0):
    raise model.too_long(len(prompt_ids), "the prompt", param)
  max_tokens = None if max_tokens == -1 else max_tokens
  wanted = min(node.config.max_generate_tokens, room) if max_tokens is None else min(max_tokens, room)
  stops, n = fields.stops, fields.n or 1
  guarded = max_tokens is None and fields.repetition_guard and not (
      fields.ignore_eos or node.config.no_repetition_guard
  )
  drawn = drawn_at(node, model, fields)
  drawing = functools.partial(
      fields.sampling, model.tokenizer, model.n_words, drawn, secrets.randbits(62), top_logprobs, grammar
  )
  sampling = await asyncio.to_thread(drawing) if fields.has_words else drawing()
  eos_ids = frozenset[int]() if fields.ignore_eos else model.tokenizer.eos_ids.union(end_ids)
  who = caller()
  node.catalog.note_deviations(model, len(prompt_ids))
  spec = GenerationSpec(
      request_id,
      tuple(prompt_ids),
      wanted,
      eos_ids,
      sampling,
      n,
      prompt_logprobs,
      share=who.label,
      cache_salt=who.cache_salt,
      exact=tell_exact(fields.is_exact(node.config.exact, drawn)),
      progress=fields.return_progress and bool(fields.stream)
  )
  with node.activity.request(spec.request_id, model.id, title, len(prompt_ids), n) as watched:
    async with node.generation(spec, model) as generation:
      choices = [
          ChoiceText(
              model.tokenizer,
              choice,
              stops,
              with_tokens=top_logprobs is not None,
              after=() if is_chat and not continued else prompt_ids,
              echoed=echoed,
              visible=visible,
              guarded=guarded
          ) for choice in range(n)
      ]
      yield TextRun(spec.request_id, int(time.time()), model, generation, choices, watched)


def drawn_at(node: Node, model: ModelInfo, fields: SamplingFields) -> SamplingDefaults:
  """What a request's answers are drawn with at this node."""
  return fields.drawn(model.sampling, node.config.default_temp)


def told_circles(circled: Container[int], choice: int = 0) -> dict[str, str]:
  """What stands beside the reason why a choice ended: something only where the guard against repetition has ended it."""
  return {"stop_reason": STOP_REASON} if choice in circled else {}


def shown_logprob(value: float) -> float:
  return min(0.0, max(LEAST_LOGPROB, value))


def identity(model: ModelInfo, exact: bool, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """What of an answer's head says how it came about; `more` where only exo has a word for it."""
  return {"system_fingerprint": f"fp_{model.fingerprint[:10]}", "exo": {"exact": exact, **(more or {})}}
