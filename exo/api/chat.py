"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from exo.api.errors import json_response
from exo.api.schema import ChatCompletionRequest, ChatMessage, TokenEncodeRequest, read_body
from exo.api.sse import event_stream
from exo.api.text_run import TextRun, fingerprint, text_run, token_json
from exo.errors import InvalidRequestError
from exo.inference.sampling import TokenLogprob
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.node import Node


async def chat_completions(request: web.Request, node: Node) -> web.StreamResponse:
  body = await read_body(request, ChatCompletionRequest)
  if body.top_logprobs is not None and not body.logprobs:
    raise InvalidRequestError("top_logprobs needs logprobs: true", "top_logprobs")
  include_usage = body.include_usage
  model = await node.model(body.model)
  prompt = await asyncio.to_thread(_prompt, node, model, body.messages)
  max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
  top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
  async with text_run(
      node, model, body, prompt, max_tokens, prefix="chatcmpl-", top_logprobs=top_logprobs, title=_title(body.messages)
  ) as run:
    if body.stream:
      return await _streamed(request, run, top_logprobs is not None, include_usage)
    return await _whole(run, top_logprobs is not None)


def _title(messages: list[ChatMessage]) -> str:
  """What was asked last, for the node's own screen."""
  content = next((m.content for m in reversed(messages) if m.role == "user"), None)
  return content if isinstance(content, str) else " ".join(part.text or "" for part in content or ())


def _prompt(node: Node, model: ModelInfo, messages: Any) -> list[int]:
  rendered = [message.for_template() for message in messages]
  if node.config.system_prompt and rendered[0]["role"] != "system":
    rendered.insert(0, {"role": "system", "content": node.config.system_prompt})
  return model.tokenizer.encode_chat(rendered)


def _logprobs(model: ModelInfo, tokens: tuple[TokenLogprob, ...]) -> dict[str, Any]:
  return {
      "content": [{
          **token_json(model, token.token_id, token.logprob),
          "top_logprobs": [token_json(model, other, logprob) for other, logprob in token.top],
      } for token in tokens],
      "refusal": None,
  }


async def _whole(run: TextRun, logprobs: bool) -> web.Response:
  texts: list[list[str]] = [[] for _ in run.choices]
  tokens: list[list[TokenLogprob]] = [[] for _ in run.choices]
  async for delta in run:
    texts[delta.choice].append(delta.text)
    tokens[delta.choice].extend(delta.tokens)
  choices = [{
      "index": i,
      "message": {"role": "assistant", "content": "".join(text), "refusal": None},
      "logprobs": _logprobs(run.model, tuple(tokens[i])) if logprobs else None,
      "finish_reason": run.finish_reasons.get(i, "stop"),
  } for i, text in enumerate(texts)]
  return json_response(_envelope(run, "chat.completion") | {"choices": choices, "usage": run.usage})


def _envelope(run: TextRun, kind: str) -> dict[str, Any]:
  return {
      "id": run.id, "object": kind, "created": run.created, "model": run.model.id,
      "system_fingerprint": fingerprint(run.model)
  }


async def _streamed(request: web.Request, run: TextRun, logprobs: bool, include_usage: bool) -> web.StreamResponse:
  envelope = _envelope(run, "chat.completion.chunk")
  usage = {"usage": None} if include_usage else {}

  def chunk(index: int, delta: dict[str, Any], finish: str | None = None, probs: Any = None) -> dict[str, Any]:
    return envelope | {
        "choices": [{"index": index, "delta": delta, "logprobs": probs, "finish_reason": finish}]
    } | usage

  async with event_stream(request) as (stream, response):
    for i in range(len(run.choices)):
      await stream.send(chunk(i, {"role": "assistant", "content": ""}))
    async for delta in run:
      for notice in run.notices():
        await stream.comment(notice)
      probs = _logprobs(run.model, delta.tokens) if logprobs and delta.tokens else None
      if delta.text or probs:
        await stream.send(chunk(delta.choice, {"content": delta.text}, None, probs), more=run.more)
      if delta.finish_reason:
        await stream.send(chunk(delta.choice, {}, delta.finish_reason))
      elif not run.more:
        await stream.flush()
    if include_usage:
      await stream.send(envelope | {"choices": [], "usage": run.usage})
  return response


async def token_encode(request: web.Request, node: Node) -> web.Response:
  """How a chat would be tokenized: `{length, num_tokens, encoded_tokens, encoded_prompt}`."""
  body = await read_body(request, TokenEncodeRequest)
  model = await node.model(body.model)
  rendered = model.tokenizer.render_chat([message.for_template() for message in body.messages])
  ids = model.tokenizer.encode(rendered, add_bos=True)
  return json_response({
      "length": len(rendered), "num_tokens": len(ids), "encoded_tokens": ids, "encoded_prompt": rendered
  })
