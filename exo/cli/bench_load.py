"""The load that `exo bench` puts on an OpenAI-compatible server, and what its clients see of it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from exo.errors import ExoError

_WORDS = [
    "harbour", "gull", "morning", "baker", "quay", "lantern", "orchard", "river", "winter", "paper", "engine", "clover",
    "shadow", "captain", "window", "garden", "copper", "silent", "bridge", "market", "thunder", "velvet", "pencil",
    "island", "meadow", "signal", "carpet", "hollow", "summer", "ribbon", "timber", "compass", "valley", "marble",
    "cotton", "anchor", "feather", "kettle", "border", "candle", "forest", "mirror", "needle", "ocean", "pebble",
    "quarry", "saddle", "temple"
]


def prose(words: int, seed: int) -> str:
  """Words that no server has seen in this order, so that no cache of an earlier prompt flatters it."""
  draw = random.Random(seed)
  return " ".join(draw.choice(_WORDS) for _ in range(words))


@dataclass(slots=True)
class Answer:
  """One streamed completion: when it was asked for and when each piece of text came, in seconds of one clock."""
  started: float
  arrived: list[float] = field(default_factory=list)
  prompt_tokens: int = 0
  completion_tokens: int = 0
  cached_tokens: int = 0
  text: str = ""
  tokens: list[str] = field(default_factory=list)  # where `logprobs` were asked for

  @property
  def first_s(self) -> float:
    """Time to the first token."""
    return self.arrived[0] - self.started

  @property
  def gaps_ms(self) -> list[float]:
    return [(b - a) * 1e3 for a, b in zip(self.arrived, self.arrived[1:], strict=False)]

  @property
  def tokens_s(self) -> float:
    """From the first token to the last."""
    return (self.completion_tokens - 1) / (self.arrived[-1] - self.arrived[0])


class Load:
  """Use as an async context manager. `url` without `/v1`; `key` is a bearer token."""
  def __init__(self, url: str, model: str | None = None, key: str | None = None) -> None:
    self.url, self.model, self._key = url.rstrip("/").removesuffix("/v1"), model, key

  async def __aenter__(self) -> Load:
    headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=900)
    # llama.cpp's server ends a connection after a stream without having said so: the next request would be lost on it
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    self._session = aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector)
    return self

  async def __aexit__(self, *_: object) -> None:
    await self._session.close()

  async def get(self, path: str) -> Any:
    """A JSON document; None where the server has none there."""
    async with self._session.get(self.url + path) as response:
      return await response.json(content_type=None) if response.status == 200 else None

  async def complete(self, prompt: str | list[int], tokens: int, **fields: Any) -> Answer:
    """Stream a completion of exactly `tokens` tokens, where the server knows `ignore_eos`. Raises `ExoError`."""
    body: dict[str, Any] = {
        "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True,
        "stream_options": {"include_usage": True}
    } | fields
    if self.model is not None:
      body["model"] = self.model
    answer = Answer(time.perf_counter())
    async with self._session.post(f"{self.url}/v1/completions", json=body) as response:
      if response.status != 200:
        raise ExoError(f"{self.url} answered with status {response.status}: {(await response.text())[:300]}")
      # only noted now and read at the end, since the client may share its cores with what it measures
      pieces = [(time.perf_counter(), piece) async for piece in response.content.iter_any()]
    rest = b""
    for arrived, piece in pieces:
      *lines, rest = (rest + piece).split(b"\n")
      for line in lines:
        if line.startswith(b"data: {"):
          self._take(answer, arrived, json.loads(line[6:]))
    if not answer.arrived:
      raise ExoError(f"{self.url} closed the stream without a token")
    answer.completion_tokens = answer.completion_tokens or len(answer.arrived)
    return answer

  @staticmethod
  def _take(answer: Answer, arrived: float, event: dict[str, Any]) -> None:
    if "error" in event:
      raise ExoError(str(event["error"].get("message", event["error"])))
    if event.get("choices"):
      text = event["choices"][0].get("text") or ""
      # an answer of nothing but tokens that are no text by themselves has come when it ends
      if text or event["choices"][0].get("finish_reason") is None or not answer.arrived:
        answer.arrived.append(arrived)
      answer.text += text
      answer.tokens += (event["choices"][0].get("logprobs") or {}).get("tokens", ())
    usage = event.get("usage")
    if usage:
      answer.prompt_tokens, answer.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
      answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0

  async def together(self, prompts: Sequence[str | list[int]], tokens: int, **fields: Any) -> list[Answer]:
    """All at once."""
    async with asyncio.TaskGroup() as group:
      tasks = [group.create_task(self.complete(prompt, tokens, **fields)) for prompt in prompts]
    return [task.result() for task in tasks]


def shared_tokens_s(answers: Sequence[Answer]) -> float:
  """Tokens per second of all streams over the time in which all of them decode; 0 where there is no such time."""
  begin, end = max(a.arrived[0] for a in answers), min(a.arrived[-1] for a in answers)
  if end <= begin:
    return 0.0
  pieces = sum(sum(begin < at <= end for at in a.arrived) for a in answers)
  per_piece = sum(a.completion_tokens for a in answers) / sum(len(a.arrived) for a in answers)
  return pieces * per_piece / (end - begin)


def quantile(values: Sequence[float], percent: float) -> float:
  """The nearest value at a percentile; 0 of nothing."""
  ordered = sorted(values)
  return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0
