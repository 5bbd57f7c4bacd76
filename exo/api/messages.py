"""POST /v1/messages: Anthropic's way to chat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from exo.api.asked_model import asked_model
from exo.api.chat_parts import CallArguments, CallBegin, Content, Reasoning
from exo.api.chat_prompt import COUNTED_CONTEXTS, chat_prompt
from exo.api.chat_run import ChatChoice, ChatDelta, ChatRun, chat_run
from exo.api.errors import anthropic_form, describe, json_response
from exo.api.messages_request import CountTokensRequest, MessagesRequest
from exo.api.schema import read_body
from exo.api.sse import EventStream, event_stream
from exo.api.told_headers import tell_ignored, tell_relaxed
from exo.orchestration.node import Node

Event = dict[str, Any]


async def messages(request: web.Request, node: Node) -> web.StreamResponse:
  body = await read_body(request, MessagesRequest)
  tell_ignored(request, body.left_out)
  async with chat_run(node, body.chat(), prefix="msg_") as run:
    tell_relaxed(request, run.relaxed)
    if body.stream:
      return await _streamed(request, run)
    choice = (await run.collect())[0]
    return json_response(_message(run, _blocks(choice), choice.finish_reason, choice.stop))


async def count_tokens(request: web.Request, node: Node) -> web.Response:
  """POST /v1/messages/count_tokens."""
  chat = (await read_body(request, CountTokensRequest)).chat()
  model = await asked_model(node, chat.model)
  prompt = await chat_prompt(node.config, model, chat, COUNTED_CONTEXTS * model.max_context)
  return json_response({"input_tokens": len(prompt.ids)})


def _stop_reason(finish: str, stop: str | None) -> str | None:
  reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
  return "stop_sequence" if stop is not None else reasons.get(finish)


def _usage(run: ChatRun) -> dict[str, Any]:
  return {
      "input_tokens": run.prompt_tokens - run.cached_tokens, "output_tokens": run.completion_tokens,
      "cache_read_input_tokens": run.cached_tokens, "cache_creation_input_tokens": 0
  }


def _message(run: ChatRun, content: list[Any], finish: str = "", stop: str | None = None) -> dict[str, Any]:
  return {
      "id": run.id, "type": "message", "role": "assistant", "model": run.model.id, "content": content,
      "stop_reason": _stop_reason(finish, stop), "stop_sequence": stop, "usage": _usage(run)
  }


def _blocks(choice: ChatChoice) -> list[dict[str, Any]]:
  blocks: list[dict[str, Any]] = []
  if choice.reasoning:
    blocks.append({"type": "thinking", "thinking": choice.reasoning, "signature": ""})
  if choice.content:
    blocks.append({"type": "text", "text": choice.content})
  for call in choice.calls:
    blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": _arguments(call.arguments)})
  return blocks


def _arguments(text: str) -> Any:
  try:
    return json.loads(text or "{}")
  except ValueError:  # cut off at max_tokens
    return {}


class _Blocks:
  """The content blocks of a stream, one after another."""
  def __init__(self, run: ChatRun) -> None:
    self._run = run
    self._index, self._open = -1, ""

  def add(self, delta: ChatDelta) -> Iterator[Event]:
    for part in delta.parts:
      match part:
        case Content(text):
          yield from self._begin("text", {"type": "text", "text": ""})
          yield self._delta({"type": "text_delta", "text": text})
        case Reasoning(text):
          yield from self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
          yield self._delta({"type": "thinking_delta", "thinking": text})
        case CallBegin(_, name):
          yield from self.end()
          yield from self._begin("tool", {"type": "tool_use", "id": self._run.new_call_id(), "name": name, "input": {}})
        case CallArguments(_, text):
          yield self._delta({"type": "input_json_delta", "partial_json": text})

  def end(self) -> Iterator[Event]:
    if self._open:
      self._open = ""
      yield {"type": "content_block_stop", "index": self._index}

  def _begin(self, kind: str, block: dict[str, Any]) -> Iterator[Event]:
    if self._open == kind:
      return
    yield from self.end()
    self._index, self._open = self._index + 1, kind
    yield {"type": "content_block_start", "index": self._index, "content_block": block}

  def _delta(self, delta: dict[str, Any]) -> Event:
    return {"type": "content_block_delta", "index": self._index, "delta": delta}


async def _streamed(request: web.Request, run: ChatRun) -> web.StreamResponse:
  async def failed(stream: EventStream, error: Exception) -> None:
    status, value = describe(error)
    await stream.send(anthropic_form(value, status, error), event="error")

  async with event_stream(request, done=False, failed=failed, ping={"type": "ping"}) as (stream, response):

    async def send(event: Event, more: bool = False) -> None:
      await stream.send(event, event=event["type"], more=more)

    blocks, finish, stop = _Blocks(run), "", None
    await send({"type": "message_start", "message": _message(run, [])})
    async for delta in run:
      for event in blocks.add(delta):
        await send(event, more=run.more)
      if delta.finish_reason:
        finish, stop = delta.finish_reason, delta.stop
    for event in blocks.end():
      await send(event)
    ending = {"stop_reason": _stop_reason(finish, stop), "stop_sequence": stop}
    await send({"type": "message_delta", "delta": ending, "usage": _usage(run)})
    await send({"type": "message_stop"})
  return response
