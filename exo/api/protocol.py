"""aiohttp's side of a connection, with this API's form for what fails outside of every handler and middleware."""

from __future__ import annotations

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler
from yarl import URL

from exo.api.errors import body, first_response, json_response
from exo.api.request_path import usual_path
from exo.errors import in_words
from exo.log import log


class ApiProtocol(RequestHandler):
  __slots__ = ()

  def data_received(self, data: bytes) -> None:
    """Requests that are whole now ask for what their clients meant by their paths."""
    super().data_received(data)
    for i, (message, payload) in enumerate(self._messages):
      if isinstance(message, RawRequestMessage) and (target := usual_path(message.path)) != message.path:
        self._messages[i] = message._replace(path=target, url=URL(target, encoded=True)), payload

  def handle_error(
      self,
      request: web.BaseRequest,
      status: int = 500,
      exc: BaseException | None = None,
      message: str | None = None
  ) -> web.StreamResponse:
    """The answer to a request that is no HTTP, or that failed where nothing else answers.

    Raises `ConnectionError`, which ends the connection, where an answer has begun.
    """
    if exc is not None:
      log(0 if status >= 500 else 1, "%s %s: %s", request.method, request.path, in_words(exc))
    if request.writer.output_size:
      raise ConnectionError("its answer has begun, and no other can follow it")
    if status >= 500:
      response = first_response(request, exc or RuntimeError("no reason is known"))
    else:
      response = json_response(body(message or "this is not HTTP", "invalid_request_error", None, None), status)
    response.force_close()
    return response

  async def finish_response(self, request: web.BaseRequest, resp: web.StreamResponse,
                            start_time: float | None) -> tuple[web.StreamResponse, bool]:
    """Send what is left of a response; one that cannot even begin gives way to an error."""
    try:
      return await super().finish_response(request, resp, start_time)
    except Exception as error:  # noqa: BLE001 - the client must hear of it, whatever it is
      return await super().finish_response(request, self.handle_error(request, 500, error), start_time)
