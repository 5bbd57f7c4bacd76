"""What clients of llama.cpp's server (and some of vLLM's) ask beside answers: tokens, templates, what the server is and does."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta, Struct

import exo
from exo.api.aside import LARGE, aside
from exo.api.asked_model import asked_model
from exo.api.chat_prompt import COUNTED_CONTEXTS, chat_prompt
from exo.api.chat_request import ChatCompletionRequest
from exo.api.errors import json_response
from exo.api.handlers import WithNode
from exo.api.schema import Count, read_body
from exo.errors import InvalidRequestError
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.node import Node

_MAX_IDS = 2**21


class TokenizeRequest(Struct, kw_only=True):
  """`content` is llama.cpp's name for the text, `prompt` vLLM's."""
  content: str | None = None
  prompt: str | None = None
  model: str | None = None
  add_special: bool | None = None
  add_special_tokens: bool | None = None
  parse_special: bool = True
  with_pieces: bool = False
  return_token_strs: bool = False


class DetokenizeRequest(Struct, kw_only=True):
  tokens: Annotated[list[Count], Meta(max_length=_MAX_IDS)]
  model: str | None = None


def add_routes(router: web.UrlDispatcher, with_node: WithNode) -> None:
  for prefix in ("", "/v1"):
    router.add_post(f"{prefix}/tokenize", with_node(tokenize))
    router.add_post(f"{prefix}/detokenize", with_node(detokenize))
    router.add_post(f"{prefix}/apply-template", with_node(apply_template))
    router.add_get(f"{prefix}/props", with_node(props))
    router.add_get(f"{prefix}/slots", with_node(slots))


async def tokenize(request: web.Request, node: Node) -> web.Response:
  body = await read_body(request, TokenizeRequest)
  text = body.prompt if body.content is None else body.content
  if text is None:
    raise InvalidRequestError("content: the text to tokenize is missing", "content")
  if not body.parse_special:
    raise InvalidRequestError(
        "parse_special: false is not done here: names of special tokens are those tokens", "parse_special"
    )
  model = await asked_model(node, body.model)
  is_other = body.content is None
  add_bos = body.add_special if body.add_special is not None else body.add_special_tokens
  add_bos = is_other if add_bos is None else add_bos
  ids = await aside(len(text), _tokens, model, text, add_bos)
  tokens: list[Any] = ids
  if body.with_pieces:
    tokens = await aside(len(text), _pieces, model, ids)
  told: dict[str, Any] = {"tokens": tokens, "count": len(ids), "max_model_len": model.max_context}
  if body.return_token_strs:
    told["token_strs"] = await aside(len(text), lambda: [model.tokenizer.token_text(i) for i in ids])
  return json_response(told)


def _tokens(model: ModelInfo, text: str, add_bos: bool) -> list[int]:
  if not text:
    return model.tokenizer.encode("", add_bos=add_bos)
  ids = model.encode(text, "the text", "content", most=COUNTED_CONTEXTS * model.max_context)
  bos = model.tokenizer.bos_id
  adds = model.tokenizer.add_bos and bos is not None and ids[:1] == [bos]
  if adds and not add_bos and not _begins_with(model, text, ids[0]):
    return ids[1:]
  return ids


def _begins_with(model: ModelInfo, text: str, bos: int) -> bool:
  """The client itself wrote it."""
  return text.startswith(model.tokenizer.token_text(bos))


def _pieces(model: ModelInfo, ids: list[int]) -> list[dict[str, Any]]:
  """Texts of tokens, or the bytes of those that are parts of characters."""
  found: list[dict[str, Any]] = []
  for token_id in ids:
    data = model.tokenizer.token_bytes(token_id)
    try:
      found.append({"id": token_id, "piece": data.decode()})
    except UnicodeDecodeError:
      found.append({"id": token_id, "piece": list(data)})
  return found


async def detokenize(request: web.Request, node: Node) -> web.Response:
  body = await read_body(request, DetokenizeRequest)
  model = await asked_model(node, body.model)
  wrong = next((i for i in body.tokens if i >= model.n_words), None)
  if wrong is not None:
    raise InvalidRequestError(f"tokens: {wrong} is not from 0 to {model.n_words - 1}", "tokens")
  text = await aside(request.content_length or LARGE, lambda: model.tokenizer.decode(body.tokens, skip_special=False))
  return json_response({"content": text, "prompt": text})


async def apply_template(request: web.Request, node: Node) -> web.Response:
  """The text that a chat becomes, and nothing is answered."""
  body = await read_body(request, ChatCompletionRequest)
  model = await asked_model(node, body.model)
  prompt = await chat_prompt(node.config, model, body, COUNTED_CONTEXTS * model.max_context)
  return json_response({"prompt": prompt.text})


async def props(request: web.Request, node: Node) -> web.Response:
  """Of the default model, or of that which `?model=` names. There is no path of this machine in it."""
  model = await asked_model(node, request.query.get("model") or None)
  tokenizer = model.tokenizer
  drawn = model.sampling.at(node.config.default_temp)
  ends = sorted(tokenizer.eos_ids)
  return json_response({
      "default_generation_settings": {
          "n_ctx": _context(node, model), "params": drawn.said | {"n_predict": -1, "stream": False}
      }, "total_slots": _places(node, model), "model_path": model.id, "model_alias": model.id,
      "chat_template": tokenizer.chat_template or "",
      "bos_token": "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id),
      "eos_token": tokenizer.token_text(ends[0]) if ends else "", "modalities": {"vision": False, "audio": False},
      "build_info": f"exo {exo.__version__}", "is_sleeping": False
  })


def _places(node: Node, model: ModelInfo) -> int:
  """How many requests run at once: what the ring has room for where the model is loaded, else what was asked for at start."""
  rooms = [room.max_sequences for _, room in node.rooms if room.model_id == model.id]
  return max(rooms, default=node.config.parallel or 1)


def _context(node: Node, model: ModelInfo) -> int:
  return max((room.max_context for _, room in node.rooms if room.model_id == model.id), default=model.max_context)


async def slots(request: web.Request, node: Node) -> web.Response:
  """Requests of this node's clients and places that are free. Whose they are and what they say is nobody else's affair."""
  model = await asked_model(node, request.query.get("model") or None)
  running = [watched for watched in node.activity.running if watched.model == model.id]
  context = _context(node, model)
  shown: list[dict[str, Any]] = []
  for number in range(max(_places(node, model), len(running))):
    watched = running[number] if number < len(running) else None
    shown.append({
        "id": number, "id_task": -1 if watched is None else number, "n_ctx": context,
        "speculative": node.config.speculation == "auto", "is_processing": watched is not None,
        "next_token": {"n_decoded": 0 if watched is None else watched.tokens}
    })
  return json_response(shown)
