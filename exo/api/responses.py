"""POST /v1/responses: OpenAI's newer way to chat, without a memory of earlier answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiohttp import web

from exo.api.chat_parts import CallArguments, CallBegin, Content, Reasoning
from exo.api.chat_run import ChatDelta, ChatRun, chat_run
from exo.api.errors import describe, json_response
from exo.api.responses_request import ResponsesRequest
from exo.api.schema import read_body
from exo.api.sse import EventStream, event_stream
from exo.api.text_run import new_id
from exo.orchestration.node import Node

Event = dict[str, Any]


async def responses(request: web.Request, node: Node) -> web.StreamResponse:
  body = await read_body(request, ResponsesRequest)
  async with chat_run(node, body.chat(), prefix="resp_") as run:
    answer = _Answer(run, body)
    if body.stream:
      return await _streamed(request, run, answer)
    async for delta in run:
      for _ in answer.add(delta):
        pass
    for _ in answer.end():
      pass
    return json_response(answer.response())


async def _streamed(request: web.Request, run: ChatRun, answer: _Answer) -> web.StreamResponse:
  async def failed(stream: EventStream, error: Exception) -> None:
    failure = describe(error)[1]["error"]
    answer.status, answer.error = "failed", {"code": failure["code"], "message": failure["message"]}
    await _send(stream, answer, {"type": "response.failed", "response": answer.response()})

  async with event_stream(request, done=False, failed=failed) as (stream, response):
    await _send(stream, answer, {"type": "response.created", "response": answer.response()})
    await _send(stream, answer, {"type": "response.in_progress", "response": answer.response()})
    async for delta in run:
      for event in answer.add(delta):
        await _send(stream, answer, event, more=run.more)
    for event in answer.end():
      await _send(stream, answer, event)
    await _send(stream, answer, {"type": f"response.{answer.status}", "response": answer.response()})
  return response


async def _send(stream: EventStream, answer: _Answer, event: Event, more: bool = False) -> None:
  await stream.send(event | {"sequence_number": answer.next_number()}, event=event["type"], more=more)


class _Answer:
  """Builds the output items, and says as events what changes."""
  def __init__(self, run: ChatRun, body: ResponsesRequest) -> None:
    self._run, self._body = run, body
    self._items: list[dict[str, Any]] = []
    self._numbers = -1
    self._finish = ""
    self.status = "in_progress"
    self.error: dict[str, Any] | None = None

  def next_number(self) -> int:
    self._numbers += 1
    return self._numbers

  def add(self, delta: ChatDelta) -> Iterator[Event]:
    """The events of a delta."""
    self._finish = delta.finish_reason or self._finish
    for part in delta.parts:
      match part:
        case Content(text):
          yield from self._text("message", text)
        case Reasoning(text):
          yield from self._text("reasoning", text)
        case CallBegin(_, name):
          yield from self._close()
          yield self._open({
              "type": "function_call", "id": new_id("fc_"), "call_id": self._run.new_call_id(), "name": name,
              "arguments": "", "status": "in_progress"
          })
        case CallArguments(_, text):
          self._items[-1]["arguments"] += text
          yield self._at("response.function_call_arguments.delta") | {"delta": text}

  def end(self) -> Iterator[Event]:
    yield from self._close()
    self.status = "incomplete" if self._finish == "length" else "completed"

  def _text(self, kind: str, text: str) -> Iterator[Event]:
    if not self._items or self._items[-1]["type"] != kind or self._items[-1]["status"] != "in_progress":
      yield from self._close()
      item: dict[str, Any] = {"type": kind, "id": new_id("msg_" if kind == "message" else "rs_"), "content": []}
      item["role" if kind == "message" else "summary"] = "assistant" if kind == "message" else []
      yield self._open(item | {"status": "in_progress"})
      part = self._part(kind)
      self._items[-1]["content"].append(part)
      yield self._at("response.content_part.added") | {"content_index": 0, "part": dict(part)}
    self._items[-1]["content"][0]["text"] += text
    yield self._at(f"response.{self._stem(kind)}.delta") | self._in_text(kind) | {"content_index": 0, "delta": text}

  @staticmethod
  def _part(kind: str) -> dict[str, Any]:
    if kind == "message":
      return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": ""}

  @staticmethod
  def _stem(kind: str) -> str:
    return "output_text" if kind == "message" else "reasoning_text"

  @staticmethod
  def _in_text(kind: str) -> dict[str, Any]:
    return {"logprobs": list[Any]()} if kind == "message" else {}

  def _open(self, item: dict[str, Any]) -> Event:
    self._items.append(item)
    return {"type": "response.output_item.added", "output_index": len(self._items) - 1, "item": _copy(item)}

  def _close(self) -> Iterator[Event]:
    if not self._items or self._items[-1]["status"] != "in_progress":
      return
    item = self._items[-1]
    item["status"] = "incomplete" if self._finish == "length" else "completed"
    if item["type"] == "function_call":
      yield self._at("response.function_call_arguments.done") | {"arguments": item["arguments"], "name": item["name"]}
    else:
      part, kind = item["content"][0], item["type"]
      done = self._at(f"response.{self._stem(kind)}.done") | self._in_text(kind)
      yield done | {"content_index": 0, "text": part["text"]}
      yield self._at("response.content_part.done") | {"content_index": 0, "part": dict(part)}
    yield {"type": "response.output_item.done", "output_index": len(self._items) - 1, "item": _copy(item)}

  def _at(self, kind: str) -> Event:
    return {"type": kind, "item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

  def response(self) -> dict[str, Any]:
    """The response as it is now."""
    body, run = self._body, self._run
    usage = None
    if self.status in ("completed", "incomplete"):
      usage = {
          "input_tokens": run.prompt_tokens, "input_tokens_details": {"cached_tokens": run.cached_tokens},
          "output_tokens": run.completion_tokens, "output_tokens_details": {"reasoning_tokens": run.reasoning_tokens},
          "total_tokens": run.prompt_tokens + run.completion_tokens
      }
    tools = [{
        "type": "function", "name": tool.name, "description": tool.description, "parameters": tool.parameters,
        "strict": bool(tool.strict)
    } for tool in body.tools or ()]
    choice = body.tool_choice or "auto"
    return {
        "id": run.id, "object": "response", "created_at": run.created, "status": self.status, "error": self.error,
        "incomplete_details": {"reason": "max_output_tokens"} if self.status == "incomplete" else None,
        "instructions": body.instructions, "max_output_tokens": body.max_output_tokens, "model": run.model.id,
        "output": [_copy(item) for item in self._items
                   ], "parallel_tool_calls": body.parallel_tool_calls is not False, "previous_response_id": None,
        "temperature": run.sampling.temperature, "top_p": run.sampling.top_p, "metadata": body.metadata or {},
        "text": {"format": (body.text.format if body.text and body.text.format else {"type": "text"})
                 }, "tool_choice": choice if isinstance(choice, str) else {"type": choice.type, "name": choice.name},
        "tools": tools, "truncation": "disabled", "store": False, "usage": usage
    }


def _copy(item: dict[str, Any]) -> dict[str, Any]:
  """As it is now: events are written before the next change, but kept ones must not follow it."""
  return item | {"content": [dict(part) for part in item["content"]]} if "content" in item else dict(item)
