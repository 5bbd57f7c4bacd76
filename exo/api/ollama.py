"""Ollama's ways to ask, for the tools that speak them: `/api/chat` and `/api/generate`."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from exo.api.aside import aside
from exo.api.asked_model import asked_model
from exo.api.caller import caller
from exo.api.chat_parts import CallArguments, CallBegin, Content, Reasoning
from exo.api.chat_prompt import without_bos
from exo.api.chat_run import ChatRun, chat_run
from exo.api.errors import json_response
from exo.api.fill_in import gap_prompt
from exo.api.handlers import WithNode
from exo.api.ndjson import Pieces, ndjson
from exo.api.ollama_request import OllamaChatRequest, OllamaGenerateRequest, OllamaRequest
from exo.api.schema import read_body
from exo.api.text_request import CompletionRequest, checked_grammar
from exo.api.text_run import TextRun, new_id, text_run, told_circles
from exo.api.told_headers import tell_relaxed
from exo.api.tool_names import ToolNames
from exo.errors import NotAllowedError
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.node import Node


def add_routes(router: web.UrlDispatcher, with_node: WithNode) -> None:
  router.add_post("/api/chat", with_node(chat))
  router.add_post("/api/generate", with_node(generate))


def now() -> str:
  return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class _Clock:
  """Ollama's durations, in nanoseconds."""
  def __init__(self) -> None:
    self._started, self._first = time.monotonic_ns(), 0

  def begun(self) -> None:
    self._first = self._first or time.monotonic_ns()

  def end(self, run: ChatRun | TextRun, reason: str) -> dict[str, Any]:
    now = time.monotonic_ns()
    first = self._first or now
    return {
        "done": True, "done_reason": {"tool_calls": "stop"}.get(reason, reason), "total_duration": now - self._started,
        "load_duration": 0, "prompt_eval_count": run.prompt_tokens, "prompt_eval_duration": first - self._started,
        "eval_count": run.completion_tokens, "eval_duration": now - first
    } | told_circles(run.circled)


async def _answer(request: web.Request, body: OllamaRequest, model: str, pieces: Pieces) -> web.StreamResponse:
  """The pieces one a line, or joined into one."""
  def line(piece: dict[str, Any]) -> dict[str, Any]:
    return {"model": model, "created_at": now()} | piece

  if not body.streams:
    whole: dict[str, Any] = {}
    async for piece in pieces:
      whole = _joined(whole, piece)
    return json_response(line(whole))

  async def lines() -> Pieces:
    async for piece in pieces:
      yield line(piece)

  return await ndjson(request, lines(), lambda: line(body.nothing | {"done": False}))


def _joined(whole: dict[str, Any], piece: dict[str, Any]) -> dict[str, Any]:
  """Texts one after another, lists too; of everything else the last."""
  out = dict(whole)
  for key, value in piece.items():
    if isinstance(value, dict):
      out[key] = _joined(out.get(key, {}), value)
    elif key in ("content", "response", "thinking", "tool_calls") and key in out:
      out[key] = out[key] + value
    else:
      out[key] = value
  return out


async def chat(request: web.Request, node: Node) -> web.StreamResponse:
  """POST /api/chat."""
  body = await read_body(request, OllamaChatRequest)
  if not body.messages:
    return json_response(await _without_question(node, body))
  names = ToolNames(tool.function.name for tool in body.tools or ())
  async with _unloading(node, body), chat_run(node, body.chat(names)) as run:
    tell_relaxed(request, run.relaxed)
    return await _answer(request, body, run.model.id, _chat_pieces(run, names))


async def _without_question(node: Node, body: OllamaRequest) -> dict[str, Any]:
  """A request that asks nothing loads the model, or with `keep_alive` 0 unloads it."""
  model = await asked_model(node, body.model)
  if body.unloads:
    if not caller().is_admin:
      raise NotAllowedError(
          "keep_alive 0 unloads the model for everybody: it wants an admin's API key, or this machine"
      )
  else:
    await _load(node, model)
  if body.keep_alive is not None and caller().is_admin:
    await node.keep_alive.keep(model.id, body.keeps_s)
  reason = "unload" if body.unloads else "load"
  return {"model": model.id, "created_at": now()} | body.nothing | {"done": True, "done_reason": reason}


async def _load(node: Node, model: ModelInfo) -> None:
  """By the shortest request there is."""
  first = model.tokenizer.bos_id or 0
  async with text_run(
      node, model, CompletionRequest(prompt=""), (first, ), 1, request_id=new_id("load-"), title="(load)"
  ) as run:
    async for _ in run:
      pass


@asynccontextmanager
async def _unloading(node: Node, body: OllamaRequest) -> AsyncIterator[None]:
  """Let the model stay for as long as was asked for by somebody who may; others' requests keep it longer."""
  keeps_s = body.keeps_s
  yield
  if body.keep_alive is not None and caller().is_admin:
    await node.keep_alive.keep((await asked_model(node, body.model)).id, keeps_s)


async def _chat_pieces(run: ChatRun, names: ToolNames) -> Pieces:
  clock, reason = _Clock(), "stop"
  name, arguments, called_any = "", "", 0

  def called() -> dict[str, Any]:
    try:
      value = json.loads(arguments or "{}")
    except ValueError:  # cut off
      value = {}
    call = {"id": run.new_call_id(), "function": {"index": called_any, "name": names.own(name), "arguments": value}}
    return {"message": {"role": "assistant", "content": "", "tool_calls": [call]}, "done": False}

  async for delta in run:
    clock.begun()
    for part in delta.parts:
      match part:
        case Content(text):
          yield {"message": {"role": "assistant", "content": text}, "done": False}
        case Reasoning(text):
          yield {"message": {"role": "assistant", "content": "", "thinking": text}, "done": False}
        case CallBegin(_, new_name):
          if name:
            yield called()
            called_any += 1
          name, arguments = new_name, ""
        case CallArguments(_, text):
          arguments += text
    reason = delta.finish_reason or reason
  if name:
    yield called()
  yield {"message": {"role": "assistant", "content": ""}} | clock.end(run, reason)


async def generate(request: web.Request, node: Node) -> web.StreamResponse:
  """POST /api/generate."""
  body = await read_body(request, OllamaGenerateRequest)
  chat_body = body.chat()
  if not body.prompt and not body.context and not body.suffix:
    return json_response(await _without_question(node, body))
  async with _unloading(node, body):
    if not body.raw and not body.suffix:
      async with chat_run(node, chat_body, after=body.context or ()) as run:
        tell_relaxed(request, run.relaxed)
        return await _answer(request, body, run.model.id, _generate_pieces(run))
    fields = CompletionRequest(prompt=body.prompt, response_format=body.response_format)
    body.fill(fields)
    model = await asked_model(node, fields.model)
    end_ids: frozenset[int] = frozenset()
    if body.suffix:
      gap = await gap_prompt(model, body.prompt, body.suffix)
      ids, end_ids = gap.ids, gap.end_ids
    else:
      ids = await aside(len(body.prompt), model.encode, body.prompt)
    if body.context:
      ids = [*body.context, *without_bos(tuple(ids), model.tokenizer)]
    grammar = await checked_grammar(request, model, fields)
    async with text_run(
        node, model, fields, ids, fields.max_tokens, request_id=new_id("cmpl-"), grammar=grammar, end_ids=end_ids
    ) as raw:
      return await _answer(request, body, model.id, _raw_pieces(raw))


async def _generate_pieces(run: ChatRun) -> Pieces:
  async for piece in _chat_pieces(run, ToolNames(())):
    message = piece.pop("message")
    thinking = {"thinking": message["thinking"]} if "thinking" in message else {}
    context = {"context": run.token_ids} if piece["done"] else {}
    yield {"response": message["content"]} | thinking | piece | context


async def _raw_pieces(run: TextRun) -> Pieces:
  clock, reason = _Clock(), "stop"
  async for delta in run:
    clock.begun()
    reason = delta.finish_reason or reason
    if delta.text:
      yield {"response": delta.text, "done": False}
  yield {"response": ""} | clock.end(run, reason) | {"context": run.token_ids}
