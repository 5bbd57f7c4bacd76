"""`/v1/rerank` and `/v1/score`: how near texts are, as Jina, Cohere, llama.cpp and vLLM answer it.

The models of this engine write text; none has a head that was trained to rank. What is told is the cosine of two texts' embeddings, from
-1 to 1, and answers say so.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np
from aiohttp import web
from msgspec import Meta, Struct

from exo.api.aside import LARGE, aside
from exo.api.asked_model import asked_model
from exo.api.completions import prompt_ids
from exo.api.embeddings import MAX_TEXTS, embed, usage_of
from exo.api.errors import json_response
from exo.api.handlers import WithNode
from exo.api.schema import Count, read_body
from exo.api.text_run import new_id
from exo.errors import InvalidRequestError
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.node import Node

_MEASURE = {"score": "cosine of embeddings"}

Texts = Annotated[list[Any], Meta(max_length=MAX_TEXTS)]


class RerankRequest(Struct, kw_only=True):
  """`documents` are texts, or objects with a `text`; `texts` instead of them is answered as Hugging Face's servers do."""
  query: str
  documents: Texts | None = None
  texts: Texts | None = None
  model: str | None = None
  top_n: Count | None = None
  return_documents: bool | None = None
  return_text: bool | None = None
  max_tokens_per_doc: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None


class ScoreRequest(Struct, kw_only=True):
  """One text and one or several others, or as many pairs as there are; `queries` and `documents` are the same by newer names."""
  text_1: str | Texts | None = None
  text_2: str | Texts | None = None
  queries: str | Texts | None = None
  documents: str | Texts | None = None
  model: str | None = None


def add_routes(router: web.UrlDispatcher, with_node: WithNode) -> None:
  for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
    router.add_post(path, with_node(rerank))
  for path in ("/score", "/v1/score"):
    router.add_post(path, with_node(score))


async def rerank(request: web.Request, node: Node) -> web.Response:
  body = await read_body(request, RerankRequest)
  given = body.texts if body.documents is None else body.documents
  param = "texts" if body.documents is None else "documents"
  if not given:
    raise InvalidRequestError("documents: there is nothing to rank", "documents")
  documents = [_text(document, param) for document in given]
  model = await asked_model(node, body.model)
  ids = await aside(request.content_length or LARGE, _ids, model, [body.query], documents, "query", param)
  ids[1:] = [one[:body.max_tokens_per_doc] for one in ids[1:]]
  query, *others = await embed(node, model, ids)
  scores = [_nearness(query, other) for other in others]
  best = sorted(range(len(scores)), key=lambda i: -scores[i])[:body.top_n]
  if body.documents is None:
    shown = [{"index": i, "score": scores[i]} | ({"text": documents[i]} if body.return_text else {}) for i in best]
    return json_response(shown)
  with_texts = body.return_documents is not False
  results = [{"index": i, "relevance_score": scores[i]} | ({"document": {"text": documents[i]}} if with_texts else {})
             for i in best]
  return json_response({
      "id": new_id("rerank-"), "object": "list", "model": model.id, "results": results, "usage": usage_of(ids),
      "exo": _MEASURE
  })


async def score(request: web.Request, node: Node) -> web.Response:
  body = await read_body(request, ScoreRequest)
  newer, older = (body.queries, body.documents), (body.text_1, body.text_2)
  if any(text is not None for text in newer) and any(text is not None for text in older):
    raise InvalidRequestError("send text_1 and text_2, or queries and documents, which say the same", "text_1")
  first = _texts(body.text_1 if body.queries is None else body.queries, "text_1")
  second = _texts(body.text_2 if body.documents is None else body.documents, "text_2")
  if len(first) == 1:
    first = first * len(second)
  if len(first) != len(second):
    raise InvalidRequestError(f"text_1 has {len(first)} texts, text_2 {len(second)}: give one, or as many", "text_1")
  model = await asked_model(node, body.model)
  different = list(dict.fromkeys((*first, *second)))
  ids = await aside(request.content_length or LARGE, _ids, model, different, [], "text_1", "text_2")
  vectors = dict(zip(different, await embed(node, model, ids), strict=True))
  data = [{"index": i, "object": "score", "score": _nearness(vectors[a], vectors[b])}
          for i, (a, b) in enumerate(zip(first, second, strict=True))]
  return json_response({
      "id": new_id("score-"), "object": "list", "created": int(time.time()), "model": model.id, "data": data,
      "usage": usage_of(ids), "exo": _MEASURE
  })


def _ids(model: ModelInfo, first: list[str], second: list[str], *params: str) -> list[list[int]]:
  found = [
      prompt_ids(list(texts), model, param, 2 * MAX_TEXTS) for texts, param in zip((first, second), params, strict=True)
      if texts
  ]
  return [ids for some in found for ids in some]


def _texts(given: str | list[Any] | None, param: str) -> list[str]:
  texts = given if isinstance(given, list) else [given]
  if not texts:
    raise InvalidRequestError(f"{param} is empty", param)
  return [_text(text, param) for text in texts]


def _text(given: Any, param: str) -> str:
  text = given.get("text") if isinstance(given, dict) else given
  if not isinstance(text, str) or not text:
    raise InvalidRequestError(f"{param}: each must be a text that is not empty, or an object with a text", param)
  return text


def _nearness(a: Any, b: Any) -> float:
  return max(-1.0, min(1.0, float(np.dot(a, b))))
