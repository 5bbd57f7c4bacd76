"""GET /openapi.json: the API as an OpenAPI 3.1 document, made from the routes that are there and the types they read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

import exo
from exo.api.chat_request import ChatCompletionRequest, TokenEncodeRequest
from exo.api.conversations import ConversationItems, ConversationRequest, ConversationUpdate
from exo.api.documents import DocumentRequest
from exo.api.infill import InfillRequest
from exo.api.messages_request import CountTokensRequest, MessagesRequest
from exo.api.ollama_embed import OllamaEmbeddingsRequest, OllamaEmbedRequest
from exo.api.ollama_models import OllamaCopyRequest, OllamaModelRequest
from exo.api.ollama_request import OllamaChatRequest, OllamaGenerateRequest
from exo.api.ranking import RerankRequest, ScoreRequest
from exo.api.request_rules import with_rules
from exo.api.response_items import InputItem
from exo.api.responses_request import ResponsesRequest
from exo.api.schema import EmbeddingRequest
from exo.api.server_tools import DetokenizeRequest, TokenizeRequest
from exo.api.text_request import CompletionRequest

_PAGE = re.compile(r"/(static/.*|favicon\.ico)?")
_ALWAYS = (401, 403)
_READS = (400, 404, 408, 409, 413, 415)
_RUNS = (429, 499, 503, 504)
_REASONS = {
    200: "The answer", 400: "The request is wrong; `param` names the field", 401: "An API key is wanted",
    403: "The host name, the origin or the role of the key does not allow it", 404: "No such route, model or request",
    408: "The body came too slowly", 409: "What is there does not allow it", 413: "The body is too large",
    415: "The body is not JSON", 429: "Too many requests wait; `Retry-After` says when to try again",
    499: "The request was cancelled", 503: "The node or its ring cannot serve now",
    504: "The ring gave nothing for too long"
}
_STREAM = "text/event-stream"
_NDJSON = "application/x-ndjson"


@dataclass(frozen=True)
class _Operation:
  """What a route reads and gives. `keys` are always in its answer; `stream` is the type of a streamed one."""
  summary: str
  body: Any = None
  keys: tuple[str, ...] = ()
  stream: str = ""
  needs_body: bool = True


_CHAT = _Operation("Chat", ChatCompletionRequest, ("id", "object", "created", "model", "choices", "usage"), _STREAM)
_TEXT = _Operation("Continue a text", CompletionRequest, ("id", "object", "created", "model", "choices"), _STREAM)
_EMBED = _Operation("Embed texts", EmbeddingRequest, ("object", "data", "model", "usage"))
_ENCODE = _Operation(
    "Tokenize a chat", TokenEncodeRequest, ("length", "num_tokens", "encoded_tokens", "encoded_prompt")
)

_OPERATIONS: dict[str, _Operation] = {
    "POST /chat/completions": _CHAT,
    "GET /chat/completions/{id}/stream": _Operation(
        "The rest of an answer that goes on without its client (keep_running)", keys=("id", ), stream=_STREAM
    ),
    "POST /completions": _TEXT,
    "POST /embeddings": _EMBED,
    "POST /chat/token/encode": _ENCODE,
    "POST /responses": _Operation("Chat, OpenAI's newer way", ResponsesRequest, ("id", "status", "output"), _STREAM),
    "POST /responses/input_tokens": _Operation(
        "Count a response's input", ResponsesRequest, ("object", "input_tokens")
    ),
    "POST /responses/compact": _Operation("Summarize a conversation", ResponsesRequest, ("id", "object", "output")),
    "GET /responses/{id}": _Operation("A response that is kept", keys=("id", "object", "output"), stream=_STREAM),
    "DELETE /responses/{id}": _Operation("Forget a response", keys=("id", "deleted")),
    "GET /responses/{id}/input_items": _Operation("What a response answered", keys=("object", "data", "has_more")),
    "POST /conversations": _Operation(
        "Begin a conversation", ConversationRequest, ("id", "object", "metadata"), needs_body=False
    ),
    "POST /conversations/{id}": _Operation("Exchange its metadata", ConversationUpdate, ("id", "object", "metadata")),
    "POST /conversations/{id}/items": _Operation("Add items", ConversationItems, ("object", "data")),
    "POST /documents/text": _Operation("The text of a PDF", DocumentRequest, ("object", "text", "note")),
    "POST /messages": _Operation("Chat, Anthropic's way", MessagesRequest, ("id", "content", "stop_reason"), _STREAM),
    "POST /messages/count_tokens": _Operation("Count a chat's tokens", CountTokensRequest, ("input_tokens", )),
    "POST /cancel/{id}": _Operation("End a running request", keys=("id", "cancelled")),
    "GET /models": _Operation(
        "The models that can be answered now, with `?all=true` all that can be asked for", keys=("object", "data")
    ),
    "GET /models/{model}": _Operation("One model, by every name that a request may have", keys=("id", "object")),
    "GET /topology": _Operation("The ring", keys=("nodes", "peer_graph")),
    "POST /api/chat": _Operation("Chat, Ollama's way", OllamaChatRequest, ("model", "done"), _NDJSON),
    "POST /api/generate": _Operation("Answer, Ollama's way", OllamaGenerateRequest, ("model", "done"), _NDJSON),
    "GET /api/tags": _Operation("The models that can be answered now, Ollama's way", keys=("models", )),
    "GET /api/ps": _Operation("The models that are loaded, Ollama's way", keys=("models", )),
    "POST /api/show": _Operation("One model, Ollama's way", OllamaModelRequest, ("details", "capabilities")),
    "POST /api/pull": _Operation("Fetch a model, Ollama's way", OllamaModelRequest, ("status", ), _NDJSON),
    "POST /api/copy": _Operation("Give a model another name, Ollama's way", OllamaCopyRequest),
    "POST /api/create": _Operation("Refused: models are files here", OllamaModelRequest),
    "POST /api/push": _Operation("Refused: exo publishes nothing", OllamaModelRequest),
    "DELETE /api/delete": _Operation("Delete a model, Ollama's way", OllamaModelRequest),
    "POST /api/embed": _Operation("Embed texts, Ollama's way", OllamaEmbedRequest, ("model", "embeddings")),
    "POST /api/embeddings": _Operation("Embed a text, Ollama's way", OllamaEmbeddingsRequest, ("embedding", )),
    "POST /rerank": _Operation("Order documents by how near they are to a query", RerankRequest),
    "POST /v2/rerank": _Operation("The same, Cohere's address", RerankRequest),
    "POST /score": _Operation("How near pairs of texts are", ScoreRequest, ("object", "data")),
    "POST /infill": _Operation("Fill a gap in a file, llama.cpp's way", InfillRequest, ("content", "timings"), _STREAM),
    "POST /tokenize": _Operation("A text's tokens", TokenizeRequest, ("tokens", )),
    "POST /detokenize": _Operation("The text of tokens", DetokenizeRequest, ("content", )),
    "POST /apply-template": _Operation("The prompt that a chat becomes", ChatCompletionRequest, ("prompt", )),
    "GET /props": _Operation(
        "What this server is, llama.cpp's way", keys=("total_slots", "default_generation_settings")
    ),
    "GET /slots": _Operation("Which places for requests are taken, llama.cpp's way"),
    "GET /api/version": _Operation("The version", keys=("version", )),
}


def document(router: web.UrlDispatcher) -> dict[str, Any]:
  """The document of all routes but the page's."""
  bodies = [operation.body for operation in _OPERATIONS.values() if operation.body is not None]
  references, components = msgspec.json.schema_components([*bodies, InputItem],
                                                          ref_template="#/components/schemas/{name}")
  schemas = dict(zip(bodies, references, strict=False))
  components = with_rules(components)
  components |= {"Error": _ERROR, "OllamaError": _OLLAMA_ERROR}
  paths: dict[str, dict[str, Any]] = {}
  for method, path, handler in sorted(_routes(router), key=lambda r: (r[1], r[0])):
    operation = _OPERATIONS.get(f"{method} {path.removeprefix('/v1')}")
    if operation is None:
      told = (inspect.getdoc(handler) or path).partition("\n")[0]
      operation = _Operation(told)
    paths.setdefault(path, {})[method.lower()] = _described(method, path, operation, schemas)
  return {
      "openapi": "3.1.0", "info": {
          "title": "exo", "version": exo.__version__,
          "description": "One ring of machines that runs large language models."
      }, "paths": paths, "components": {
          "schemas": components, "securitySchemes": {
              "bearer": {"type": "http", "scheme": "bearer"},
              "key": {"type": "apiKey", "in": "header", "name": "x-api-key"}
          }
      }, "security": [{}, {"bearer": []}, {"key": []}]
  }


_TEXT_OR_NULL = {"type": ["string", "null"]}
_ERROR = {
    "type": "object", "required": ["error"], "properties": {
        "error": {
            "type": "object", "required": ["message", "type", "param", "code"], "properties": {
                "message": {"type": "string"}, "type": {"type": "string"}, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL
            }
        }
    }
}

_OLLAMA_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}


def _routes(router: web.UrlDispatcher) -> Iterable[tuple[str, str, Any]]:
  for route in router.routes():
    if route.resource is not None and route.method not in ("HEAD", "OPTIONS", "*"):
      path = route.resource.canonical
      if not _PAGE.fullmatch(path):
        yield route.method, path, route.handler


def _described(method: str, path: str, operation: _Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
  statuses = {*_ALWAYS, 404, 503}
  if method != "GET":
    statuses |= {*_READS, *_RUNS}
  answer: dict[str, Any] = {}
  if operation.keys:
    answer = {"type": "object", "required": list(operation.keys)}
  content = {"application/json": {"schema": answer}}
  if operation.stream:
    content[operation.stream] = {}
  responses: dict[str, Any] = {"200": {"description": _REASONS[200], "content": content if operation.keys else {}}}
  for status in sorted(statuses):
    shape = "OllamaError" if path.startswith("/api/") else "Error"
    error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    responses[str(status)] = {"description": _REASONS[status], "content": error}
  out: dict[str, Any] = {
      "summary": operation.summary, "operationId": re.sub(r"\W+", "_", f"{method.lower()}{path}").strip("_"),
      "responses": responses
  }
  if names := re.findall(r"\{(\w+)\}", path):
    out["parameters"] = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
  if operation.body is not None:
    out["requestBody"] = {
        "required": operation.needs_body, "content": {"application/json": {"schema": schemas[operation.body]}}
    }
  return out
