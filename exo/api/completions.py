"""POST /v1/completions: raw prompts, as text or token ids, with echo and log probabilities to score a text."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from exo.api.aside import FEW_TOKENS, LARGE, TOKEN_SIZE, aside
from exo.api.asked_model import asked_model
from exo.api.errors import json_response
from exo.api.exact import tell_exact
from exo.api.fill_in import gap_prompt
from exo.api.schema import read_body
from exo.api.sse import EventStream, event_stream
from exo.api.text_request import CompletionRequest, checked_grammar
from exo.api.text_run import TextRun, drawn_at, identity, new_id, shown_logprob, text_run, told_circles, told_timings
from exo.api.waiting import Waiting
from exo.errors import InvalidRequestError
from exo.inference.detokenizer import text_before
from exo.inference.sampling import TokenLogprob
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.node import Node

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_PROMPTS = 64


async def completions(request: web.Request, node: Node) -> web.StreamResponse:
  body = await read_body(request, CompletionRequest)
  include_usage = body.include_usage
  model = await asked_model(node, body.model)
  end_ids: frozenset[int] = frozenset()
  if body.suffix:
    if not isinstance(body.prompt, str):
      raise InvalidRequestError("suffix: the gap before it is filled after one prompt, given as a string", "suffix")
    gap = await gap_prompt(model, body.prompt, body.suffix)
    prompts, end_ids = [gap.ids], gap.end_ids
  else:
    prompts = await aside(request.content_length or LARGE, prompt_ids, body.prompt, model, "prompt")
  max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
  if max_tokens == 0 and not body.echo:
    raise InvalidRequestError("max_tokens 0 only makes sense with echo", "max_tokens")
  exact = body.is_exact(node.config.exact, drawn_at(node, model, body))
  grammar = await checked_grammar(request, model, body)
  job = _Job(node, model, body, max_tokens, exact, new_id("cmpl-"), int(time.time()), grammar, end_ids)
  if body.stream:
    return await _streamed(request, job, prompts, include_usage)
  return await _whole(job, prompts)


@dataclass(frozen=True)
class _Job:
  node: Node
  model: ModelInfo
  body: CompletionRequest
  max_tokens: int
  exact: bool
  id: str
  created: int
  grammar: str
  end_ids: frozenset[int] = frozenset()

  def run(self, prompt: list[int], number: int) -> Any:
    """The context in which one prompt runs."""
    return text_run(
        self.node,
        self.model,
        self.body,
        prompt,
        self.max_tokens,
        request_id=f"{self.id}.{number}",
        top_logprobs=self.body.logprobs,
        prompt_logprobs=self.body.logprobs if self.body.echo else None,
        echoed=bool(self.body.echo),
        grammar=self.grammar,
        end_ids=self.end_ids
    )


def prompt_ids(prompt: str | list[str | int | list[int]],
               model: ModelInfo,
               param: str,
               most: int = MAX_PROMPTS) -> list[list[int]]:
  """One or several texts, at most `most`, as token ids. Raises `InvalidRequestError` for empty ones and for ids that there are not."""
  if isinstance(prompt, str):
    texts: list[str | list[int]] = [prompt]
  elif prompt and all(isinstance(p, int) for p in prompt):
    texts = [[p for p in prompt if isinstance(p, int)]]
  else:
    texts = [p for p in prompt if not isinstance(p, int)]
    if len(texts) != len(prompt):
      raise InvalidRequestError(f"{param} mixes token ids with texts", param)
  if len(texts) > most:
    raise InvalidRequestError(f"{param}: {len(texts)} texts in one request, {most} are allowed", param)
  if not texts or not all(texts):
    raise InvalidRequestError(f"{param} is empty", param)
  named = [(text, f"{param} {i}" if len(texts) > 1 else f"the {param}") for i, text in enumerate(texts)]
  long = next(((t, what) for t, what in named if not isinstance(t, str) and len(t) > model.max_context), None)
  if long is not None:
    raise model.too_long(len(long[0]), long[1], param)
  for text in texts:
    wrong = None if isinstance(text, str) else next((i for i in text if not 0 <= i < model.n_words), None)
    if wrong is not None:
      raise InvalidRequestError(f"{param}: token id {wrong} is not from 0 to {model.n_words - 1}", param)
  ids = [model.encode(t, what, param) if isinstance(t, str) else t for t, what in named]
  if not all(ids):
    raise InvalidRequestError(f"{param} is empty", param)
  return ids


class _Logprobs:
  """OpenAI's older form: parallel lists, built up token by token."""
  def __init__(self, model: ModelInfo) -> None:
    self._model = model
    self._offset = 0

  async def built(self, tokens: list[TokenLogprob | int]) -> dict[str, Any]:
    """As `build`, of many on another thread."""
    return await aside(len(tokens) * TOKEN_SIZE, self.build, tokens) if len(tokens) > FEW_TOKENS else self.build(tokens)

  def build(self, tokens: list[TokenLogprob | int]) -> dict[str, Any]:
    """Of these tokens; a bare id is a token without log probability (the first of a prompt)."""
    out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
      token_id = token if isinstance(token, int) else token.token_id
      text = self._model.tokenizer.token_text(token_id)
      out["tokens"].append(text)
      out["token_logprobs"].append(None if isinstance(token, int) else shown_logprob(token.logprob))
      out["top_logprobs"].append(None if isinstance(token, int) else self._top(token))
      out["text_offset"].append(self._offset)
      self._offset += len(text)
    return out

  def _top(self, token: TokenLogprob) -> dict[str, float]:
    """By text; where several tokens have one text, the likeliest counts."""
    top: dict[str, float] = {}
    for token_id, logprob in token.top:
      top.setdefault(self._model.tokenizer.token_text(token_id), shown_logprob(logprob))
    return top


def _echoed(job: _Job, prompt: list[int], run: TextRun) -> tuple[str, list[TokenLogprob | int]]:
  """The prompt's text and, where log probabilities are wanted, its tokens."""
  return text_before(job.model.tokenizer, prompt), [prompt[0], *run.prompt_logprobs]


async def _whole(job: _Job, prompts: list[list[int]]) -> web.Response:
  runs = await asyncio.gather(*(_one(job, prompt, i) for i, prompt in enumerate(prompts)))
  choices: list[dict[str, Any]] = []
  for run, texts, tokens in runs:
    for i, text in enumerate(texts):
      logprobs = None if job.body.logprobs is None else await _Logprobs(job.model).built(tokens[i])
      choices.append({
          "index": len(choices), "text": text, "logprobs": logprobs, "finish_reason": run.finish_reasons.get(i, "stop")
      } | told_circles(run.circled, i))
  return json_response(
      _envelope(job) | {
          "choices": choices, "usage": _usage([run for run, _, _ in runs]),
          "timings": told_timings([run for run, _, _ in runs])
      }
  )


def _usage(runs: list[TextRun]) -> dict[str, Any]:
  prompt, completion = sum(run.prompt_tokens for run in runs), sum(run.completion_tokens for run in runs)
  return {
      "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
      "prompt_tokens_details": {"cached_tokens": sum(run.cached_tokens for run in runs)}
  }


async def _one(job: _Job, prompt: list[int], number: int) -> tuple[TextRun, list[str], list[list[TokenLogprob | int]]]:
  async with job.run(prompt, number) as run:
    texts = [""] * len(run.choices)
    tokens: list[list[TokenLogprob | int]] = [[] for _ in run.choices]
    async for delta in run:
      texts[delta.choice] += delta.text
      tokens[delta.choice].extend(token.logprob for token in delta.tokens)
    if job.body.echo:
      text, scored = await aside(len(prompt), _echoed, job, prompt, run)
      texts, tokens = [text + t for t in texts], [scored + t for t in tokens]
    return run, texts, tokens


def _envelope(job: _Job) -> dict[str, Any]:
  return {"id": job.id, "object": "text_completion", "created": job.created, "model": job.model.id
          } | identity(job.model, tell_exact(job.exact))


async def _streamed(
    request: web.Request, job: _Job, prompts: list[list[int]], include_usage: bool
) -> web.StreamResponse:
  """Several prompts follow one another; their choices are told apart by index."""
  n = job.body.n or 1
  runs: list[TextRun] = []
  async with AsyncExitStack() as running:
    runs.append(await running.enter_async_context(job.run(prompts[0], 0)))  # refused before the response begins
    async with event_stream(request) as (stream, response):
      for p, prompt in enumerate(prompts):
        if p:
          await running.aclose()
          runs.append(await running.enter_async_context(job.run(prompt, p)))
        await _stream_one(stream, job, prompt, runs[-1], p * n, include_usage)
      if include_usage:
        await stream.send(_envelope(job) | {"choices": [], "usage": _usage(runs)})
  return response


async def _stream_one(
    stream: EventStream, job: _Job, prompt: list[int], run: TextRun, base: int, include_usage: bool
) -> None:
  usage = {"usage": None} if include_usage else {}
  builders = [_Logprobs(job.model) for _ in run.choices]
  echoed = [not job.body.echo for _ in run.choices]
  waiting = Waiting(job.body.return_progress)

  async def tell(fields: dict[str, Any]) -> None:
    choice = {"index": base, "text": "", "logprobs": None, "finish_reason": None}
    await stream.send(_envelope(job) | {"choices": [choice]} | usage | fields)

  async for delta in run:
    if delta.progress is not None:
      await tell(waiting.told(delta.progress))
      continue
    if last := waiting.last(run.prompt_tokens, run.cached_tokens):
      await tell(last)
    for notice in run.notices():
      await stream.comment(notice)
    text, tokens = delta.text, [token.logprob for token in delta.tokens]
    shown: list[TokenLogprob | int] = list(tokens)
    if not echoed[delta.choice]:
      echoed[delta.choice] = True
      prompt_text, scored = await aside(len(prompt), _echoed, job, prompt, run)
      text, shown = prompt_text + text, scored + shown
    if not text and not delta.finish_reason:
      await stream.flush()
      continue
    logprobs = None if job.body.logprobs is None else await builders[delta.choice].built(shown)
    choice = {
        "index": base + delta.choice, "text": text, "logprobs": logprobs, "finish_reason": delta.finish_reason or None
    } | told_circles(run.circled, delta.choice)
    timings = {"timings": run.timings} if delta.finish_reason or job.body.timings_per_token else {}
    await stream.send(_envelope(job) | {"choices": [choice]} | usage | timings, more=run.more)
