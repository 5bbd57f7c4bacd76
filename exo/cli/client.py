"""A small client of a node's own API, for the commands that talk to one."""

from __future__ import annotations

import errno
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from exo.errors import ExoError, in_words
from exo.runtime_file import RuntimeInfo

_HEALTH_TIMEOUT_S = 2.0
_NO_LOOPBACK = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN)


@dataclass(frozen=True, slots=True)
class Delta:
  """A piece of an answer; the last one carries usage. Before the first: how far the `prompt` is, or its `place` in the line."""
  text: str = ""
  finish_reason: str | None = None
  usage: dict[str, Any] | None = None
  stop_reason: str | None = None
  prompt: dict[str, int] | None = None
  place: int | None = None


class ApiClient:
  """Use as an async context manager. Errors of the API are raised as `ExoError` with the server's message."""
  def __init__(self, info: RuntimeInfo) -> None:
    self._info = info

  async def __aenter__(self) -> ApiClient:
    headers = {"Authorization": f"Bearer {self._info.token}"} if self._info.token else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    self._session = aiohttp.ClientSession(self._info.api_url, headers=headers, timeout=timeout)
    return self

  async def __aexit__(self, *_: object) -> None:
    await self._session.close()

  @property
  def url(self) -> str:
    return self._info.api_url

  @property
  def key(self) -> str:
    """Stands for any API key on this machine; "" where there is none."""
    return self._info.token

  @asynccontextmanager
  async def _reached(self) -> AsyncIterator[None]:
    try:
      yield
    except aiohttp.ClientConnectorError as error:
      hint = ": bring its loopback interface up (ip link set lo up)" if error.errno in _NO_LOOPBACK else ""
      raise ExoError(f"this machine does not reach its own address {self.url} ({error.strerror}){hint}") from error
    except aiohttp.ClientError as error:
      raise ExoError(
          f"the node at {self.url} has broken off ({in_words(error)}): exo status shows whether it runs"
      ) from error

  async def get(self, path: str) -> Any:
    async with self._reached(), self._session.get(path) as response:
      return await _checked(response)

  async def first_event(self, path: str) -> Any:
    """The first of a stream's events, which is left then."""
    async with self._reached(), self._session.get(path) as response:
      if response.status != 200:
        await _checked(response)
      async for line in response.content:
        if line.startswith(b"data: {"):
          return json.loads(line[6:])
    raise ExoError("the node closed the stream")

  async def post(self, path: str, body: Any) -> Any:
    async with self._reached(), self._session.post(path, json=body) as response:
      return await _checked(response)

  async def delete(self, path: str) -> Any:
    async with self._reached(), self._session.delete(path) as response:
      return await _checked(response)

  async def chat(self, model: str | None, messages: list[dict[str, str]],
                 settings: Mapping[str, Any]) -> AsyncGenerator[Delta, None]:
    """Stream an answer. `settings` are further fields of the request."""
    body: dict[str, Any] = {
        "messages": messages, "stream": True, "stream_options": {"include_usage": True}, "return_progress": True,
        **settings
    }
    if model is not None:
      body["model"] = model
    async with self._reached(), self._session.post("/v1/chat/completions", json=body) as response:
      if response.status != 200:
        await _checked(response)
      async for line in response.content:
        if not line.startswith(b"data: ") or line == b"data: [DONE]\n":
          continue
        event = json.loads(line[6:])
        if "error" in event:
          raise ExoError(event["error"]["message"])
        choices = event["choices"]
        if "prompt_progress" in event or "queue" in event:
          yield Delta(prompt=event.get("prompt_progress"), place=event.get("queue", {}).get("place"))
        elif choices:
          of = choices[0]
          yield Delta(of["delta"].get("content") or "", of["finish_reason"], stop_reason=of.get("stop_reason"))
        elif event.get("usage"):
          yield Delta(usage=event["usage"])


async def _checked(response: aiohttp.ClientResponse) -> Any:
  value = await response.json(content_type=None)
  if response.status != 200:
    raise ExoError(
        value["error"]["message"] if isinstance(value, dict) and "error" in value else f"HTTP {response.status}"
    )
  return value


async def answers(info: RuntimeInfo) -> bool:
  """Whether a node really serves at the address of its runtime file."""
  try:
    timeout = aiohttp.ClientTimeout(total=_HEALTH_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout
                                     ) as session, session.get(f"{info.api_url}/healthcheck") as response:
      return response.status == 200
  except (aiohttp.ClientError, TimeoutError):
    return False
