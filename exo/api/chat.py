"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from exo.api.aside import FEW_TOKENS, TOKEN_SIZE, aside
from exo.api.asked_model import asked_model
from exo.api.caller import caller
from exo.api.chat_parts import CallArguments, CallBegin, Content, Reasoning
from exo.api.chat_prompt import COUNTED_CONTEXTS
from exo.api.chat_request import ChatCompletionRequest, TokenEncodeRequest
from exo.api.chat_run import ChatChoice, ChatDelta, ChatRun, chat_run
from exo.api.errors import json_response
from exo.api.exact import tell_exact
from exo.api.kept_answers import KEPT_ANSWERS, ChunkWriter, KeptAnswer
from exo.api.schema import read_body
from exo.api.sse import event_stream
from exo.api.text_run import identity, shown_logprob, told_circles
from exo.api.told_headers import tell_ignored, tell_relaxed
from exo.api.waiting import Waiting
from exo.errors import InvalidRequestError
from exo.inference.plain_text import split_at
from exo.inference.whole_characters import whole_characters
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.node import Node
from exo.orchestration.text_stream import TextToken


async def chat_completions(request: web.Request, node: Node) -> web.StreamResponse:
  body = await read_body(request, ChatCompletionRequest)
  include_usage = body.include_usage
  legacy = body.adopt_functions()
  tell_ignored(request, body.ignored_tools)
  told: dict[str, Any] = {}
  if body.goes_on:
    if request.app[KEPT_ANSWERS].has_room(caller().label):
      return await _kept(request, node, body, include_usage, legacy)
    told = {"keep_running": False}
  async with chat_run(node, body) as run:
    tell_relaxed(request, run.relaxed)
    if body.stream:
      async with event_stream(request) as (stream, response):
        await _write(stream, run, body, include_usage, legacy, told)
      return response
    answers = await run.collect()
    tokens = sum(len(choice.tokens) for choice in answers)
    choices = [
        await aside(tokens * TOKEN_SIZE, _choice, run, i, choice, bool(body.logprobs), legacy)
        if tokens > FEW_TOKENS else _choice(run, i, choice, bool(body.logprobs), legacy)
        for i, choice in enumerate(answers)
    ]
    return json_response(
        _envelope(run, "chat.completion") | {"choices": choices, "usage": run.usage, "timings": run.timings}
    )


def _envelope(run: ChatRun, kind: str) -> dict[str, Any]:
  return {"id": run.id, "object": kind, "created": run.created, "model": run.model.id} | identity(run.model, run.exact)


def _choice(run: ChatRun, index: int, choice: ChatChoice, logprobs: bool, legacy: bool) -> dict[str, Any]:
  """`legacy`: a call is told as it was before there were tools."""
  message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
  if choice.reasoning:
    message["reasoning_content"] = choice.reasoning
  if choice.calls:
    message["content"] = choice.content or None
  if choice.calls and legacy:
    message["function_call"] = {"name": choice.calls[0].name, "arguments": choice.calls[0].arguments}
  elif choice.calls:
    message["tool_calls"] = [{
        "id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}
    } for call in choice.calls]
  return {
      "index": index, "message": message, "logprobs": token_logprobs(run.model, choice.tokens) if logprobs else None,
      "finish_reason": _reason(choice.finish_reason, legacy)
  } | told_circles(run.circled, index)


def _reason(finish: str, legacy: bool) -> str:
  return "function_call" if legacy and finish == "tool_calls" else finish


def token_logprobs(model: ModelInfo, tokens: Sequence[TextToken]) -> dict[str, Any]:
  """As OpenAI tells them, with the alternatives that were asked for."""
  return {
      "content": [{
          "token": model.tokenizer.token_text(token.logprob.token_id), "logprob": shown_logprob(token.logprob.logprob),
          "bytes": list(token.data), "top_logprobs": [{
              "token": model.tokenizer.token_text(other), "logprob": shown_logprob(logprob),
              "bytes": list(model.tokenizer.token_bytes(other))
          } for other, logprob in token.logprob.top]
      } for token in tokens],
      "refusal": None,
  }


def _deltas(run: ChatRun, delta: ChatDelta, legacy: bool) -> list[dict[str, Any]]:
  """The pieces of a delta in the order in which they came."""
  out: list[dict[str, Any]] = []
  for part in delta.parts:
    match part:
      case Content(text):
        out.append({"content": text})
      case Reasoning(text):
        out.append({"reasoning_content": text})
      case CallBegin(index, name) if legacy:
        out.extend([{"function_call": {"name": name, "arguments": ""}}] if index == 0 else [])
      case CallArguments(index, text) if legacy:
        out.extend([{"function_call": {"arguments": text}}] if index == 0 else [])
      case CallBegin(index, name):
        call = {"index": index, "id": run.new_call_id(), "type": "function"}
        out.append({"tool_calls": [call | {"function": {"name": name, "arguments": ""}}]})
      case CallArguments(index, text):
        out.append({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
  return out


async def _write(
    stream: ChunkWriter, run: ChatRun, body: ChatCompletionRequest, include_usage: bool, legacy: bool, told: dict[str,
                                                                                                                  Any]
) -> None:
  """A streamed answer's chunks; the first ones carry what is `told` of it."""
  envelope = _envelope(run, "chat.completion.chunk")
  usage = {"usage": None} if include_usage else {}
  logprobs, timed, waiting = bool(body.logprobs), body.timings_per_token, Waiting(body.return_progress)

  def chunk(index: int, delta: dict[str, Any], finish: str | None = None, probs: Any = None) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": probs, "finish_reason": finish}
    return envelope | {"choices": [choice | (told_circles(run.circled, index) if finish else {})]
                       } | usage | ({"timings": run.timings} if timed or finish else {})

  for i in range(run.n):
    await stream.send(chunk(i, {"role": "assistant", "content": ""}) | told)
  async for delta in run:
    if delta.progress is not None:
      await stream.send(chunk(0, {}) | waiting.told(delta.progress))
      continue
    if last := waiting.last(run.prompt_tokens, run.cached_tokens):
      await stream.send(chunk(0, {}) | last)
    for notice in run.notices():
      await stream.comment(notice)
    probs = token_logprobs(run.model, delta.tokens) if logprobs and delta.tokens else None
    for piece in _deltas(run, delta, legacy):
      with_content = "content" in piece
      await stream.send(chunk(delta.choice, piece, None, probs if with_content else None), more=True)
      probs = None if with_content else probs
    if delta.finish_reason:
      await stream.send(chunk(delta.choice, {}, _reason(delta.finish_reason, legacy), probs))
    elif not run.more:
      await stream.flush()
  if include_usage:
    await stream.send(envelope | {"choices": [], "usage": run.usage})


async def _kept(
    request: web.Request, node: Node, body: ChatCompletionRequest, include_usage: bool, legacy: bool
) -> web.StreamResponse:
  """An answer that is written by a task of its own, and read by this request as by others that may come after it."""
  async def work(answer: KeptAnswer) -> None:
    async with chat_run(node, body) as run:
      answer.open(run.id, run.exact, run.relaxed)
      await _write(answer, run, body, include_usage, legacy, {"keep_running": True})

  return await _read(request, await request.app[KEPT_ANSWERS].start(caller().label, work), 0)


async def stream_again(request: web.Request, node: Node) -> web.StreamResponse:
  """The rest of an answer that was asked for with `keep_running`."""
  named = "Last-Event-ID" if "Last-Event-ID" in request.headers else "starting_after"
  text = request.headers.get("Last-Event-ID") or request.query.get("starting_after") or "0"
  if not (text.isascii() and text.isdigit() and len(text) < 10):
    raise InvalidRequestError(f"{named} is the number that an event of this answer had as its id", named)
  who = caller()
  answer = request.app[KEPT_ANSWERS].find(request.match_info["id"], None if who.is_admin else who.label)
  return await _read(request, answer, int(text))


async def _read(request: web.Request, answer: KeptAnswer, after: int) -> web.StreamResponse:
  tell_exact(answer.exact)
  tell_relaxed(request, answer.relaxed)
  with answer.reader(after) as next_events:
    async with event_stream(request) as (stream, response):
      while data := await next_events():
        await stream.pass_on(data)
  return response


async def token_encode(request: web.Request, node: Node) -> web.Response:
  """How a chat would be tokenized: `{length, num_tokens, encoded_tokens, encoded_prompt}`."""
  body = await read_body(request, TokenEncodeRequest)
  model = await asked_model(node, body.model)
  messages = [message.for_template() for message in body.messages]

  def work() -> tuple[str, list[int]]:
    (plain, ), mark = model.tokenizer.plain_text.marked(messages)
    rendered = whole_characters(model.tokenizer.render_chat(plain))
    ids = model.encode(rendered, param="messages", most=COUNTED_CONTEXTS * model.max_context, mark=mark)
    return "".join(split_at(rendered, mark)), ids

  rendered, ids = await aside(sum(message.size for message in body.messages), work)
  return json_response({
      "length": len(rendered), "num_tokens": len(ids), "encoded_tokens": ids, "encoded_prompt": rendered
  })
