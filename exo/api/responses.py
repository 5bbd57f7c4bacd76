"""OpenAI's Responses API: `POST /v1/responses` and the routes of the responses that are kept."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from exo.api.asked_model import asked_model
from exo.api.caller import caller
from exo.api.chat import token_logprobs
from exo.api.chat_prompt import COUNTED_CONTEXTS, chat_prompt
from exo.api.chat_request import ChatCompletionRequest, ChatMessage
from exo.api.chat_run import ChatDelta, ChatRun, chat_run
from exo.api.errors import describe, json_response
from exo.api.handlers import WithNode
from exo.api.kept import KeptResponse, owner, page_of, recall
from exo.api.response_builder import Event, Item, ResponseBuilder
from exo.api.response_items import sealed_summary, tools_in
from exo.api.response_tools import ToolSet
from exo.api.response_turn import Turn, begin_turn
from exo.api.responses_request import ResponsesRequest
from exo.api.schema import read_body
from exo.api.sse import EventStream, event_stream
from exo.api.text_run import identity, told_circles
from exo.api.told_headers import tell_ignored, tell_relaxed
from exo.errors import InvalidRequestError
from exo.orchestration.node import Node
from exo.orchestration.text_stream import TextToken

_MOST_EVENTS = 200_000  # that are kept to be sent again
_TRIES = 24  # to make a conversation fit
_SUMMARY_TOKENS = 1024
_SUMMARIZE = (
    "Summarize the conversation so far, so that it can go on from your summary alone: what was asked, what was decided and "
    "done, what tools gave, and what is still to do. Answer with the summary only."
)


def add_routes(router: web.UrlDispatcher, prefix: str, with_node: WithNode) -> None:
  router.add_post(f"{prefix}/responses", with_node(responses))
  router.add_post(f"{prefix}/responses/input_tokens", with_node(input_tokens))
  router.add_post(f"{prefix}/responses/compact", with_node(compact))
  router.add_get(f"{prefix}/responses/{{id:resp_[^/]+}}", with_node(response))
  router.add_delete(f"{prefix}/responses/{{id:resp_[^/]+}}", with_node(delete))
  router.add_get(f"{prefix}/responses/{{id:resp_[^/]+}}/input_items", with_node(input_items))
  router.add_post(f"{prefix}/responses/{{id:resp_[^/]+}}/cancel", with_node(cancel))


async def responses(request: web.Request, node: Node) -> web.StreamResponse:
  """Answer, and keep what was said unless `store` is false."""
  body = await read_body(request, ResponsesRequest)
  turn = await begin_turn(node, body)
  tools = ToolSet(body.tools or (), tools_in(turn.whole))
  tell_ignored(request, tools.ignored)
  chat = body.chat(tools, turn.whole)
  async with _fitting(node, chat, body.truncation == "auto") as run:
    tell_relaxed(request, run.relaxed)
    answer = _Answer(run, body, turn, tools)
    if body.stream:
      return await _streamed(request, run, answer)
    async for delta in run:
      for _ in answer.add(delta):
        pass
    for _ in answer.end():
      pass
    return json_response(await answer.kept())


@asynccontextmanager
async def _fitting(node: Node, chat: ChatCompletionRequest, drop: bool) -> AsyncIterator[ChatRun]:
  """A run of a chat; with `drop`, without its oldest messages where it is longer than the context."""
  async with AsyncExitStack() as stack:
    for tried in range(_TRIES):
      try:
        run = await stack.enter_async_context(chat_run(node, chat, prefix="resp_"))
        break
      except InvalidRequestError as error:
        fewer = _without_oldest(chat.messages)
        if not drop or error.details.get("code") != "context_length_exceeded" or fewer is None or tried == _TRIES - 1:
          raise
        chat = msgspec.structs.replace(chat, messages=fewer)
    yield run


def _without_oldest(messages: list[ChatMessage]) -> list[ChatMessage] | None:
  """A quarter fewer, cut before a user's message; None where only the last one is left. Instructions stay."""
  first = next((i for i, m in enumerate(messages) if m.role not in ("system", "developer")), len(messages))
  at = first + max(1, (len(messages) - first) // 4)
  while at < len(messages) - 1 and messages[at].role != "user":
    at += 1
  return [*messages[:first], *messages[at:]] if at < len(messages) else None


async def _streamed(request: web.Request, run: ChatRun, answer: _Answer) -> web.StreamResponse:
  async def failed(stream: EventStream, error: Exception) -> None:
    failure = describe(error)[1]["error"]
    answer.status, answer.error = "failed", {"code": failure["code"], "message": failure["message"]}
    await _send(stream, answer, {"type": "response.failed", "response": answer.response()})

  async with event_stream(request, done=False, failed=failed) as (stream, sent):
    await _send(stream, answer, {"type": "response.created", "response": answer.response()})
    await _send(stream, answer, {"type": "response.in_progress", "response": answer.response()})
    async for delta in run:
      for event in answer.add(delta):
        await _send(stream, answer, event, more=run.more)
    for event in answer.end():
      await _send(stream, answer, event)
    last = await answer.kept()
    await _send(stream, answer, {"type": f"response.{answer.status}", "response": last})
  return sent


async def _send(stream: EventStream, answer: _Answer, event: Event, more: bool = False) -> None:
  await stream.send(event | {"sequence_number": answer.next_number()}, event=event["type"], more=more)


class _Answer:
  """A response in the making, as its client sees it."""
  def __init__(self, run: ChatRun, body: ResponsesRequest, turn: Turn, tools: ToolSet) -> None:
    self._run, self._body, self._turn = run, body, turn
    logprobs = self._logprobs if body.logprobs is not None else None
    self._builder = ResponseBuilder(turn.begin(run.id), tools, run.new_call_id, logprobs)
    self._events: list[Event] = []
    self._numbers = -1
    self._finish = ""
    self._stores = turn.keeps
    self.status = "in_progress"
    self.error: dict[str, Any] | None = None

  def _logprobs(self, tokens: Sequence[TextToken]) -> list[Any]:
    told: list[Any] = token_logprobs(self._run.model, tokens)["content"]
    return told

  def next_number(self) -> int:
    self._numbers += 1
    return self._numbers

  def add(self, delta: ChatDelta) -> Iterator[Event]:
    """The events of a delta."""
    self._finish = delta.finish_reason or self._finish
    yield from self._noted(self._builder.add(delta.parts, delta.tokens))

  def end(self) -> Iterator[Event]:
    cut = self._finish == "length"
    yield from self._noted(self._builder.end(cut))
    self.status = "incomplete" if cut else "completed"

  def _noted(self, events: Iterator[Event]) -> Iterator[Event]:
    for event in events:
      if self._turn.keeps and len(self._events) <= _MOST_EVENTS:
        self._events.append(event)
      yield event

  async def kept(self) -> dict[str, Any]:
    """The response as it stays, once it is kept."""
    final = self.response()
    await self._turn.end(final, self._events if len(self._events) <= _MOST_EVENTS else [])
    return final

  def response(self) -> dict[str, Any]:
    """The response as it is now."""
    run, usage = self._run, None
    over = self.status in ("completed", "incomplete")
    if over:
      usage = _usage(run)
    return {
        "id": run.id, "object": "response", "created_at": run.created, "status": self.status, "error": self.error,
        "completed_at": int(time.time()) if over else None, "incomplete_details": {"reason": "max_output_tokens"}
        if self.status == "incomplete" else None, "model": run.model.id, "output": self._builder.output,
        "temperature": run.sampling.temperature, "top_p": run.sampling.top_p, "store": self._stores, "usage": usage
    } | self._body.echo() | identity(run.model, run.exact, told_circles(run.circled))


def _usage(run: ChatRun) -> dict[str, Any]:
  return {
      "input_tokens": run.prompt_tokens, "input_tokens_details": {"cached_tokens": run.cached_tokens},
      "output_tokens": run.completion_tokens, "output_tokens_details": {"reasoning_tokens": run.reasoning_tokens},
      "total_tokens": run.prompt_tokens + run.completion_tokens
  }


# what is kept


async def response(request: web.Request, node: Node) -> web.StreamResponse:
  """A response that is kept, on whichever node; with `?stream=true` its events once more, `starting_after` a number."""
  kept, _ = await recall(node, request.match_info["id"], KeptResponse)
  if request.query.get("stream", "false").lower() not in ("true", "1"):
    return json_response(kept.response)
  after = request.query.get("starting_after", "-1")
  if not re.fullmatch(r"-1|[0-9]{1,12}", after):
    raise InvalidRequestError("starting_after is the sequence number of an event", "starting_after")
  async with event_stream(request, done=False) as (stream, sent):
    events = list(_told_again(kept))
    for number, event in enumerate(events):
      if number > int(after):
        await stream.send(event | {"sequence_number": number}, event=event["type"], more=number % 64 > 0)
    await stream.flush()
  return sent


def _told_again(kept: KeptResponse) -> Iterator[Event]:
  final = kept.response
  begun = final | {
      "status": "in_progress", "output": [], "usage": None, "completed_at": None, "incomplete_details": None
  }
  yield {"type": "response.created", "response": begun}
  yield {"type": "response.in_progress", "response": begun}
  yield from kept.events or _whole_items(final.get("output") or [])
  yield {"type": f"response.{final['status']}", "response": final}


def _whole_items(output: list[Item]) -> Iterator[Event]:
  """Where the events themselves were too many to be kept."""
  for index, item in enumerate(output):
    yield {"type": "response.output_item.added", "output_index": index, "item": item | {"status": "in_progress"}}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


async def delete(request: web.Request, node: Node) -> web.Response:
  """Forget a response, wherever it is kept."""
  response_id = request.match_info["id"]
  await node.records.forget(await owner(node), response_id, any_owner=caller().is_admin)
  return json_response({"id": response_id, "object": "response", "deleted": True})


async def input_items(request: web.Request, node: Node) -> web.Response:
  """The items that a response answered, those of earlier turns first, by `limit`, `order` and `after`."""
  kept, _ = await recall(node, request.match_info["id"], KeptResponse)
  return json_response(page_of(request, [*kept.before, *kept.items]))


async def cancel(request: web.Request, node: Node) -> web.Response:
  """End a response that is on its way; whoever reads it is told so."""
  response_id, who = request.match_info["id"], caller()
  if node.desk.cancel(response_id, None if who.is_admin else who.label):
    return json_response({"id": response_id, "object": "response", "status": "cancelled", "output": []})
  kept, _ = await recall(node, response_id, KeptResponse)
  raise InvalidRequestError(f"{response_id} is {kept.response.get('status')}: there is nothing to cancel", "id")


# without an answer


async def input_tokens(request: web.Request, node: Node) -> web.Response:
  """How many tokens the prompt of such a request has."""
  body = await read_body(request, ResponsesRequest)
  turn = await begin_turn(node, body)
  tools = ToolSet(body.tools or (), tools_in(turn.whole))
  chat = body.chat(tools, turn.whole)
  model = await asked_model(node, chat.model)
  prompt = await chat_prompt(node.config, model, chat, COUNTED_CONTEXTS * model.max_context)
  return json_response({"object": "response.input_tokens", "input_tokens": len(prompt.ids)})


async def compact(request: web.Request, node: Node) -> web.Response:
  """A conversation as its user's messages and a summary that the model makes of all of it, for the input of later requests."""
  body = await read_body(request, ResponsesRequest)
  turn = await begin_turn(node, body)
  if not turn.whole:
    raise InvalidRequestError("input: there is nothing to compact", "input")
  tools = ToolSet(())
  asked: Item = {"type": "message", "role": "user", "content": _SUMMARIZE}
  chat = msgspec.structs.replace(
      body.chat(tools, [*turn.whole, asked]),
      stream=None,
      tools=None,
      tool_choice=None,
      response_format=None,
      max_completion_tokens=body.max_output_tokens or _SUMMARY_TOKENS
  )
  async with _fitting(node, chat, body.truncation == "auto") as run:
    ids = turn.begin(run.id)
    summary = (await run.collect())[0].content
    users = [item for item in turn.items if item.get("role") == "user"]
    sealed = {"type": "compaction", "id": ids.new("cmp_"), "encrypted_content": sealed_summary(summary)}
    output = [item | {"status": "completed"} for item in [*_users(turn.before), *users]] + [sealed]
    return json_response({
        "id": run.id, "object": "response.compaction", "created_at": run.created, "model": run.model.id,
        "output": output, "usage": _usage(run)
    })


def _users(items: list[Item]) -> list[Item]:
  return [item for item in items if item.get("role") == "user"]
