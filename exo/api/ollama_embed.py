"""Ollama's embeddings: `/api/embed`, and `/api/embeddings` as it was before."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web
from msgspec import Struct

from exo.api.aside import LARGE, aside
from exo.api.asked_model import asked_model
from exo.api.embeddings import MAX_TEXTS
from exo.api.embeddings import embed as vectors_of
from exo.api.errors import json_response
from exo.api.handlers import WithNode
from exo.api.schema import PositiveCount, read_body
from exo.errors import InvalidRequestError
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.node import Node


class OllamaEmbedRequest(Struct, kw_only=True):
  """`truncate`: of a text that is too long the beginning counts, instead of an error."""
  model: str | None = None
  input: str | list[str] = ""
  truncate: bool | None = None
  dimensions: PositiveCount | None = None
  options: dict[str, Any] | None = None
  keep_alive: Any = None


class OllamaEmbeddingsRequest(Struct, kw_only=True):
  model: str | None = None
  prompt: str = ""
  options: dict[str, Any] | None = None
  keep_alive: Any = None


def add_routes(router: web.UrlDispatcher, with_node: WithNode) -> None:
  router.add_post("/api/embed", with_node(embed))
  router.add_post("/api/embeddings", with_node(embeddings))


async def embed(request: web.Request, node: Node) -> web.Response:
  """POST /api/embed."""
  started = time.monotonic_ns()
  body = await read_body(request, OllamaEmbedRequest)
  # no text loads the model, and nothing else
  texts = body.input if isinstance(body.input, list) else [body.input] if body.input else []
  if len(texts) > MAX_TEXTS:
    raise InvalidRequestError(f"input: {len(texts)} texts in one request, {MAX_TEXTS} are allowed", "input")
  model = await asked_model(node, body.model)
  loaded = time.monotonic_ns()
  truncate = body.truncate is not False
  vectors, tokens = await _vectors(node, model, texts, truncate=truncate, dimensions=body.dimensions)
  return json_response({
      "model": model.id, "embeddings": vectors, "total_duration": time.monotonic_ns() - started,
      "load_duration": loaded - started, "prompt_eval_count": tokens
  })


async def embeddings(request: web.Request, node: Node) -> web.Response:
  """POST /api/embeddings: of one text."""
  body = await read_body(request, OllamaEmbeddingsRequest)
  model = await asked_model(node, body.model)
  vectors, _ = await _vectors(node, model, [body.prompt] if body.prompt else [], truncate=True)
  return json_response({"embedding": vectors[0] if vectors else []})


async def _vectors(node: Node,
                   model: ModelInfo,
                   texts: list[str],
                   *,
                   truncate: bool,
                   dimensions: int | None = None) -> tuple[list[list[float]], int]:
  """(one at unit length of each text, how many tokens they have together)."""
  size = sum(map(len, texts))
  ids = await aside(size if size < LARGE else LARGE, _ids, model, texts, truncate)
  found = await vectors_of(node, model, ids, dimensions)
  return [vector.tolist() for vector in found], sum(map(len, ids))


def _ids(model: ModelInfo, texts: list[str], truncate: bool) -> list[list[int]]:
  if not all(texts):
    raise InvalidRequestError("input: a text is empty", "input")
  if not truncate:
    return [model.encode(text, "the input", "input") for text in texts]
  # so many characters are enough for as many tokens as there may be, of most texts
  most = model.max_context
  longest = most * model.tokenizer.longest_token
  return [model.encode(text[:longest], "the input", "input", most=longest + 1)[:most] for text in texts]
