"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}` with the right status."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from aiohttp import web
from aiohttp.http_writer import StreamWriter

from exo import errors
from exo.api.handlers import Handler
from exo.log import log

# status, OpenAI type and code by class of error; subclasses count as the nearest entry
_STATUS: dict[type[BaseException], tuple[int, str, str | None]] = {
    errors.InvalidRequestError: (400, "invalid_request_error", None),
    errors.NotAllowedError: (403, "invalid_request_error", "admin_only"),
    errors.NotDoneError: (409, "invalid_request_error", "not_done"),
    errors.RequestNotFoundError: (404, "invalid_request_error", "request_not_found"),
    errors.RecordNotFoundError: (404, "invalid_request_error", "not_found"),
    errors.RecordDamagedError: (404, "invalid_request_error", "damaged"),
    errors.RecordConflictError: (409, "invalid_request_error", "conflict"),
    errors.RecordsUnavailableError: (503, "server_error", "records_unavailable"),
    errors.ModelNotFoundError: (404, "invalid_request_error", "model_not_found"),
    errors.ModelTooLargeError: (503, "server_error", "model_too_large"),
    errors.ModelFilesError: (503, "server_error", "model_files_error"),
    errors.UnsupportedModelError: (400, "invalid_request_error", "unsupported_model"),
    errors.ModelInUseError: (409, "invalid_request_error", "model_in_use"),
    errors.DownloadError: (503, "server_error", "download_error"),
    errors.EngineUnavailableError: (503, "server_error", "engine_unavailable"),
    errors.OutOfMemoryError: (503, "server_error", "out_of_memory"),
    errors.QueueFullError: (429, "rate_limit_error", "queue_full"),
    errors.DrainingError: (503, "server_error", "draining"),
    errors.StartingError: (503, "server_error", "starting"),
    errors.PeerLostError: (503, "server_error", "peer_lost"),
    errors.PeerUnreachableError: (503, "server_error", "peer_unreachable"),
    errors.PlanClosedError: (503, "server_error", "plan_closed"),
    errors.StageSickError: (503, "server_error", "stage_sick"),
    errors.ModelAsideError: (503, "server_error", "model_aside"),
    errors.ModelRefusedError: (503, "server_error", "model_refused"),
    errors.BadNumbersError: (503, "server_error", "bad_numbers"),
    errors.CacheLostError: (503, "server_error", "cache_lost"),
    errors.EngineError: (500, "server_error", "engine_error"),
    errors.DeadlineError: (504, "server_error", "deadline"),
    errors.CancelledRequestError: (499, "server_error", "cancelled"),
    errors.ExoError: (500, "server_error", "internal_error"),
}

_MAX_MESSAGE = 2000
_MOST_RETRY_S = 3600


class Refused(Exception):
  """A request that does not get as far as its route: its status, what to do, and a code."""
  def __init__(self, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> None:
    super().__init__(message)
    self.status, self.message, self.code, self.headers = status, message, code, headers


def describe(error: BaseException) -> tuple[int, dict[str, Any]]:
  """(HTTP status, body) of an error. An unexpected one tells nothing of the inside."""
  for cls in type(error).__mro__:
    if cls in _STATUS and isinstance(error, errors.ExoError):
      status, kind, code = _STATUS[cls]
      if cls is errors.ExoError:
        break
      param, own_code = error.details.get("param"), error.details.get("code")
      # what the client sent may stand in it, paths of this machine may not
      message = error.message if status < 500 else errors.without_paths(error.message)
      return status, body(
          message[:_MAX_MESSAGE], kind, None if param is None else str(param),
          str(own_code) if own_code else code
      )
  return 500, body(
      "the node failed while it served this request; its log says why", "server_error", None, "internal_error"
  )


def body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
  return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def in_form(request: web.BaseRequest,
            value: dict[str, Any],
            status: int,
            error: BaseException | None = None) -> dict[str, Any]:
  """An error's body as the clients of this route know it."""
  if request.path.startswith("/api/"):
    return ollama_form(value)
  return anthropic_form(value, status, error) if request.path.removeprefix("/v1").startswith("/messages") else value


def ollama_form(value: dict[str, Any]) -> dict[str, Any]:
  """Just the words, which is all that Ollama's clients show."""
  return {"error": value["error"]["message"]}


_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error"
}


def anthropic_form(value: dict[str, Any], status: int, error: BaseException | None = None) -> dict[str, Any]:
  """With Anthropic's types, told at the top that it is an error, and an overflow in the words by which agents know it."""
  said = dict(value["error"])
  said["type"] = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
  if isinstance(error, errors.ContextExceededError):
    said["message"
         ] = f"prompt is too long: {error.details.get('tokens')} tokens > {error.details.get('context')} maximum"
  return {"type": "error", "error": said}


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
  return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json", headers=headers)


def error_response(request: web.BaseRequest, error: BaseException) -> web.Response:
  status, value = describe(error)
  headers = {}
  if isinstance(error, errors.QueueFullError | errors.ModelAsideError):
    headers["Retry-After"] = str(_retry_after_s(error))
  return json_response(in_form(request, value, status, error), status, headers)


def _retry_after_s(error: errors.ExoError) -> int:
  """Whole seconds, whatever another node said."""
  said = error.details.get("retry_after_s")
  return max(1, min(_MOST_RETRY_S, math.ceil(said))) if isinstance(said, int | float) and math.isfinite(said) else 5


End = Callable[[Exception | None], Awaitable[None]]


@dataclass(slots=True)
class _Streamed:
  """A response that is sent as it comes. `end` writes what comes last, which tells of the error if there was one."""
  response: web.StreamResponse
  end: End
  over: bool = False


_STREAMED = web.RequestKey("streamed", _Streamed)


@asynccontextmanager
async def streamed(request: web.Request, response: web.StreamResponse, end: End) -> AsyncIterator[None]:
  """Send a response's headers, and after the block its end. What is raised is told by `error_middleware`, through `end`."""
  request[_STREAMED] = stream = _Streamed(response, end)
  await response.prepare(request)
  yield
  await end(None)
  await response.write_eof()
  stream.over = True


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
  """Every failure of a handler, and aiohttp's own 404, 405, 413, in the one shape.

  To stand twice: before the other middlewares, of which each may fail, and behind them, so that they see the answer.
  """
  try:
    return await handler(request)
  except web.HTTPException as error:
    if error.status < 400:
      raise
    if request.method == "OPTIONS" and isinstance(error, web.HTTPMethodNotAllowed):
      return web.Response(status=204, headers={"Allow": ", ".join(sorted({*error.allowed_methods, "OPTIONS"}))})
    text = {
        404: f"there is no {request.path} here", 405: f"{request.method} is not possible on {request.path}",
        413: "the request body is too large"
    }.get(error.status, error.reason)
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
    value = body(text, "invalid_request_error", None, None)
    return json_response(in_form(request, value, error.status), error.status, headers)
  except Exception as error:  # whatever it is, the client gets an answer in its route's form, and the log the reason
    if isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing()):
      log(2, "%s %s: the client is gone", request.method, request.path)
      raise
    log(
        1 if isinstance(error, errors.ExoError) else 0, "%s %s: %s", request.method, request.path,
        errors.in_words(error)
    )
    if not request.writer.output_size:
      return first_response(request, error)
    stream: _Streamed | None = request.get(_STREAMED)
    if stream is None:
      raise
    if not stream.over:
      await stream.end(error)
      await stream.response.write_eof()
      stream.over = True
    return stream.response


def first_response(request: web.BaseRequest, error: BaseException) -> web.Response:
  """The answer to a request of which nothing is answered yet, though another response may have been prepared."""
  writer = cast(StreamWriter, request.writer)
  writer.chunked, writer.length = False, None
  return error_response(request, error)
