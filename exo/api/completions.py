"""POST /v1/completions: raw prompts, as text or token ids, with echo and log probabilities to score a text."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from exo.api.errors import json_response
from exo.api.schema import CompletionRequest, read_body
from exo.api.sse import event_stream
from exo.api.text_run import TextRun, fingerprint, text_run
from exo.errors import InvalidRequestError
from exo.inference.sampling import TokenLogprob
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.node import Node

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_PROMPTS = 64


async def completions(request: web.Request, node: Node) -> web.StreamResponse:
  body = await read_body(request, CompletionRequest)
  if body.suffix:
    raise InvalidRequestError("suffix is not supported: these models continue a text, they do not fill gaps", "suffix")
  include_usage = body.include_usage
  model = await node.model(body.model)
  prompts = await asyncio.to_thread(_prompts, body, model)
  max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
  if max_tokens == 0 and not body.echo:
    raise InvalidRequestError("max_tokens 0 only makes sense with echo", "max_tokens")
  job = _Job(node, model, body, max_tokens)
  if body.stream:
    return await _streamed(request, job, prompts, include_usage)
  return await _whole(job, prompts)


@dataclass(frozen=True)
class _Job:
  node: Node
  model: ModelInfo
  body: CompletionRequest
  max_tokens: int

  def run(self, prompt: list[int]) -> Any:
    """The context in which one prompt runs."""
    scored = self.body.logprobs if self.body.echo else None
    return text_run(
        self.node,
        self.model,
        self.body,
        prompt,
        self.max_tokens,
        prefix="cmpl-",
        top_logprobs=self.body.logprobs,
        prompt_logprobs=scored
    )


def _prompts(body: CompletionRequest, model: ModelInfo) -> list[list[int]]:
  """The prompts as token ids. Raises `InvalidRequestError` for empty ones and for ids that the model does not have."""
  prompt = body.prompt
  if isinstance(prompt, str):
    texts: list[str | list[int]] = [prompt]
  elif prompt and all(isinstance(p, int) for p in prompt):
    texts = [[p for p in prompt if isinstance(p, int)]]
  else:
    texts = [p for p in prompt if not isinstance(p, int)]
    if len(texts) != len(prompt):
      raise InvalidRequestError("prompt mixes token ids with texts", "prompt")
  if len(texts) > MAX_PROMPTS:
    raise InvalidRequestError(f"{len(texts)} prompts in one request, {MAX_PROMPTS} are allowed", "prompt")
  ids = [model.tokenizer.encode(t, add_bos=True) if isinstance(t, str) else t for t in texts]
  if not ids or any(not i for i in ids):
    raise InvalidRequestError("the prompt is empty", "prompt")
  vocabulary = model.checkpoint.config.vocab_size
  wrong = next((i for prompt_ids in ids for i in prompt_ids if not 0 <= i < vocabulary), None)
  if wrong is not None:
    raise InvalidRequestError(f"token id {wrong} is not from 0 to {vocabulary - 1}", "prompt")
  return ids


class _Logprobs:
  """OpenAI's older form: parallel lists, built up token by token."""
  def __init__(self, model: ModelInfo) -> None:
    self._model = model
    self._offset = 0

  def build(self, tokens: list[TokenLogprob | int]) -> dict[str, Any]:
    """Of these tokens; a bare id is a token without log probability (the first of a prompt)."""
    out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token in tokens:
      token_id = token if isinstance(token, int) else token.token_id
      text = self._model.tokenizer.token_text(token_id)
      out["tokens"].append(text)
      out["token_logprobs"].append(None if isinstance(token, int) else min(0.0, token.logprob))
      out["top_logprobs"].append(
          None if isinstance(token, int) else {self._model.tokenizer.token_text(i): min(0.0, p)
                                               for i, p in token.top}
      )
      out["text_offset"].append(self._offset)
      self._offset += len(text)
    return out


def _echoed(job: _Job, prompt: list[int], run: TextRun) -> tuple[str, list[TokenLogprob | int]]:
  """The prompt's text and, where log probabilities are wanted, its tokens."""
  text = job.model.tokenizer.decode(prompt, skip_special=False)
  return text, [prompt[0], *run.prompt_logprobs]


async def _whole(job: _Job, prompts: list[list[int]]) -> web.Response:
  runs = await asyncio.gather(*(_one(job, prompt) for prompt in prompts))
  choices: list[dict[str, Any]] = []
  for run, texts, tokens in runs:
    for i, text in enumerate(texts):
      logprobs = None if job.body.logprobs is None else _Logprobs(job.model).build(tokens[i])
      choices.append({
          "index": len(choices), "text": text, "logprobs": logprobs, "finish_reason": run.finish_reasons.get(i, "stop")
      })
  usage = sum_usage([run.usage for run, _, _ in runs])
  return json_response(_envelope(runs[0][0]) | {"choices": choices, "usage": usage})


async def _one(job: _Job, prompt: list[int]) -> tuple[TextRun, list[str], list[list[TokenLogprob | int]]]:
  async with job.run(prompt) as run:
    texts = [""] * len(run.choices)
    tokens: list[list[TokenLogprob | int]] = [[] for _ in run.choices]
    async for delta in run:
      texts[delta.choice] += delta.text
      tokens[delta.choice].extend(delta.tokens)
    if job.body.echo:
      text, scored = _echoed(job, prompt, run)
      texts, tokens = [text + t for t in texts], [scored + t for t in tokens]
    return run, texts, tokens


def sum_usage(usages: list[dict[str, Any]]) -> dict[str, Any]:
  """The usage of several prompts together."""
  total: dict[str, Any] = {
      key: sum(u[key] for u in usages)
      for key in ("prompt_tokens", "completion_tokens", "total_tokens")
  }
  cached = sum(u["prompt_tokens_details"]["cached_tokens"] for u in usages)
  return total | {"prompt_tokens_details": {"cached_tokens": cached}}


def _envelope(run: TextRun) -> dict[str, Any]:
  return {
      "id": run.id, "object": "text_completion", "created": run.created, "model": run.model.id,
      "system_fingerprint": fingerprint(run.model)
  }


async def _streamed(
    request: web.Request, job: _Job, prompts: list[list[int]], include_usage: bool
) -> web.StreamResponse:
  """Several prompts follow one another; their choices are told apart by index."""
  n = job.body.n or 1
  total = sum_usage([])
  async with AsyncExitStack() as running:
    run: TextRun = await running.enter_async_context(job.run(prompts[0]))  # refused before the response begins
    envelope = _envelope(run)
    async with event_stream(request) as (stream, response):
      for p, prompt in enumerate(prompts):
        if p:
          await running.aclose()
          run = await running.enter_async_context(job.run(prompt))
        await _stream_one(stream, envelope, job, prompt, run, p * n, include_usage)
        total = sum_usage([total, run.usage])
      if include_usage:
        await stream.send(envelope | {"choices": [], "usage": total})
  return response


async def _stream_one(
    stream: Any, envelope: dict[str, Any], job: _Job, prompt: list[int], run: TextRun, base: int, include_usage: bool
) -> None:
  usage = {"usage": None} if include_usage else {}
  builders = [_Logprobs(job.model) for _ in run.choices]
  echoed = [not job.body.echo for _ in run.choices]
  async for delta in run:
    for notice in run.notices():
      await stream.comment(notice)
    text, tokens = delta.text, list[TokenLogprob | int](delta.tokens)
    if not echoed[delta.choice]:
      echoed[delta.choice] = True
      prompt_text, scored = _echoed(job, prompt, run)
      text, tokens = prompt_text + text, scored + tokens
    if not text and not delta.finish_reason:
      await stream.flush()
      continue
    logprobs = None if job.body.logprobs is None else builders[delta.choice].build(tokens)
    choice = {
        "index": base + delta.choice, "text": text, "logprobs": logprobs, "finish_reason": delta.finish_reason or None
    }
    await stream.send(envelope | {"choices": [choice]} | usage, more=run.more)
