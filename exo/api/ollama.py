"""Ollama's routes, for the tools that speak them: `/api/chat`, `/api/generate`, `/api/tags`, `/api/show`, `/api/version`."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

import exo
from exo.api.aside import aside
from exo.api.asked_model import asked_model
from exo.api.chat_parts import CallArguments, CallBegin, Content, Reasoning
from exo.api.chat_run import ChatRun, chat_run
from exo.api.errors import describe, json_response, streamed
from exo.api.ollama_request import OllamaChatRequest, OllamaGenerateRequest, OllamaRequest, OllamaShowRequest
from exo.api.schema import CompletionRequest, read_body
from exo.api.text_run import TextRun, new_id, text_run
from exo.orchestration.listed_model import ListedModel
from exo.orchestration.model_list import list_models
from exo.orchestration.model_profile import ModelProfile
from exo.orchestration.node import Node
from exo.sampling_defaults import SamplingDefaults

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Pieces = AsyncIterator[dict[str, Any]]


def add_routes(
    router: web.UrlDispatcher, with_node: Callable[[Callable[[web.Request, Node], Awaitable[web.StreamResponse]]],
                                                   Handler]
) -> None:
  router.add_post("/api/chat", with_node(chat))
  router.add_post("/api/generate", with_node(generate))
  router.add_get("/api/tags", with_node(tags))
  router.add_post("/api/show", with_node(show))
  router.add_get("/api/version", with_node(version))


def _now() -> str:
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
    }


async def _answer(request: web.Request, body: OllamaRequest, model: str, pieces: Pieces) -> web.StreamResponse:
  """The pieces one a line, or joined into one."""
  def line(piece: dict[str, Any]) -> dict[str, Any]:
    return {"model": model, "created_at": _now()} | piece

  if not body.streams:
    whole: dict[str, Any] = {}
    async for piece in pieces:
      whole = _joined(whole, piece)
    return json_response(line(whole))
  response = web.StreamResponse(headers={"Cache-Control": "no-cache"})
  response.content_type = "application/x-ndjson"

  async def end(error: Exception | None) -> None:
    if error is not None:
      await response.write(msgspec.json.encode(describe(error)[1]) + b"\n")

  async with streamed(request, response, end):
    async for piece in pieces:
      await response.write(msgspec.json.encode(line(piece)) + b"\n")
  return response


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
  body = await read_body(request, OllamaChatRequest)
  if not body.messages:
    model = await asked_model(node, body.model_name)
    empty = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "load"}
    return json_response({"model": model.id, "created_at": _now()} | empty)
  async with chat_run(node, body.chat()) as run:
    return await _answer(request, body, run.model.id, _chat_pieces(run))


async def _chat_pieces(run: ChatRun) -> Pieces:
  clock, reason = _Clock(), "stop"
  name, arguments = "", ""

  def called() -> dict[str, Any]:
    try:
      value = json.loads(arguments or "{}")
    except ValueError:  # cut off
      value = {}
    return {
        "message": {
            "role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": value}}]
        }, "done": False
    }

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
          name, arguments = new_name, ""
        case CallArguments(_, text):
          arguments += text
    reason = delta.finish_reason or reason
  if name:
    yield called()
  yield {"message": {"role": "assistant", "content": ""}} | clock.end(run, reason)


async def generate(request: web.Request, node: Node) -> web.StreamResponse:
  body = await read_body(request, OllamaGenerateRequest)
  chat_body = body.chat()
  if not body.prompt:
    model = await asked_model(node, body.model_name)
    return json_response({"model": model.id, "created_at": _now(), "response": "", "done": True, "done_reason": "load"})
  if not body.raw:
    async with chat_run(node, chat_body) as run:
      return await _answer(request, body, run.model.id, _generate_pieces(run))
  fields = CompletionRequest(prompt=body.prompt)
  body.fill(fields)
  model = await asked_model(node, fields.model)
  ids = await aside(len(body.prompt), model.encode, body.prompt)
  async with text_run(node, model, fields, ids, fields.max_tokens, request_id=new_id("cmpl-")) as raw:
    return await _answer(request, body, model.id, _raw_pieces(raw))


async def _generate_pieces(run: ChatRun) -> Pieces:
  async for piece in _chat_pieces(run):
    message = piece.pop("message")
    thinking = {"thinking": message["thinking"]} if "thinking" in message else {}
    yield {"response": message["content"]} | thinking | piece


async def _raw_pieces(run: TextRun) -> Pieces:
  clock, reason = _Clock(), "stop"
  async for delta in run:
    clock.begun()
    reason = delta.finish_reason or reason
    if delta.text:
      yield {"response": delta.text, "done": False}
  yield {"response": ""} | clock.end(run, reason)


async def tags(request: web.Request, node: Node) -> web.Response:
  """The models that can be answered now."""
  listed = await list_models(node, everything=False)
  return json_response({"models": [_tag(model) for model in listed]})


def _tag(model: ListedModel) -> dict[str, Any]:
  digest = hashlib.sha256(f"{model.id} {model.profile.file.key}".encode()).hexdigest()
  return {
      "name": model.id, "model": model.id, "modified_at": datetime.fromtimestamp(model.state.changed_at,
                                                                                 UTC).isoformat(),
      "size": model.state.total_bytes or 0, "digest": digest, "details": _details(model.profile)
  }


def _details(profile: ModelProfile) -> dict[str, Any]:
  family = "" if profile.facts is None else profile.facts.model_type
  weights = 0 if profile.size is None else profile.size.n_weights
  return {
      "parent_model": "", "format": profile.format, "family": family, "families": [family] if family else [],
      "parameter_size": _count(weights), "quantization_level": profile.packing
  }


def _count(weights: int) -> str:
  """"8.0B", "135M", "" for few."""
  if weights >= 10**9:
    return f"{weights / 10**9:.1f}B"
  return f"{weights / 10**6:.0f}M" if weights >= 10**6 else ""


async def show(request: web.Request, node: Node) -> web.Response:
  body = await read_body(request, OllamaShowRequest)
  name = (body.model or body.name or "").removesuffix(":latest") or None
  model = await asked_model(node, name)
  config = model.checkpoint.config
  template = model.tokenizer.chat_template or ""
  profile = await asyncio.to_thread(node.profiles.look, await node.catalog.find(model.id))
  family = config.model_type
  return json_response({
      "modelfile": f"FROM {model.id}\n", "parameters": _parameters(model.sampling.at(node.config.default_temp)),
      "template": template, "details": _details(profile), "capabilities": profile.capabilities, "model_info": {
          "general.architecture": family, f"{family}.context_length": config.max_context,
          f"{family}.embedding_length": config.hidden_size, f"{family}.block_count": config.n_layers
      }
  })


def _parameters(defaults: SamplingDefaults) -> str:
  """A line each, as in a modelfile."""
  return "\n".join(
      f"{'repeat_penalty' if name == 'repetition_penalty' else name:<30} {value:g}"
      for name, value in defaults.said.items()
  )


async def version(request: web.Request, node: Node) -> web.Response:
  return json_response({"version": exo.__version__})
