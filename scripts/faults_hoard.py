"""Many clients at once, and whether each gets exactly its text or an honest error, soon."""

from __future__ import annotations

import asyncio
import collections
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

SILENCE_S = 30.0  # the longest that a client may be without a token, a refusal or an error
GIVE_UP_S = 120.0
_LONG = "The sea was calm and the wind came from the west, and nobody on the quay knew whose boat it was. "
_TOPICS = ("the sea", "a cat", "winter", "bread", "a train", "music", "the moon", "a garden", "rain", "a small town")


@dataclass(frozen=True)
class Case:
  """A request whose answer is known. `body` is a chat's."""
  name: str
  body: dict[str, Any]


def cases() -> list[Case]:
  """Short and long prompts, greedy and seeded."""
  found = []
  for i, topic in enumerate(_TOPICS):
    chat = [{"role": "user", "content": f"Write a few words about {topic}."}]
    found.append(Case(f"greedy {topic}", {"messages": chat, "max_tokens": 16 + i, "temperature": 0}))
    found.append(Case(f"seeded {topic}", {"messages": chat, "max_tokens": 20, "temperature": 0.8, "seed": i}))
  for i in range(3):
    chat = [{"role": "user", "content": f"{_LONG * (10 + 6 * i)}Whose boat was it?"}]
    found.append(Case(f"long {i}", {"messages": chat, "max_tokens": 8, "temperature": 0}))
  return found


@dataclass
class Answer:
  """`silence_s` is the longest time without a token, a refusal or an error; `error` an error's code or message."""
  status: int = 0
  text: str = ""
  error: str = ""
  done: bool = False
  silence_s: float = 0.0
  resumed: int = 0


class _Silence:
  def __init__(self) -> None:
    self._since, self.longest_s = time.monotonic(), 0.0

  def broken(self) -> None:
    now = time.monotonic()
    self.longest_s, self._since = max(self.longest_s, now - self._since), now


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    body: dict[str, Any],
    enough: Callable[[int], bool] = lambda _: False
) -> Answer:
  """One chat; the client leaves as soon as `enough`, asked with the number of events, says so."""
  out, silence, events = Answer(), _Silence(), 0
  try:
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
      out.status = response.status
      if response.content_type != "text/event-stream":
        _whole(out, await response.text())
        silence.broken()
        return out
      async for raw in response.content:
        line = raw.decode().strip()
        out.resumed += line.startswith(": resumed")
        if line == "data: [DONE]":
          out.done = True
        if not line.startswith("data: {"):
          continue
        silence.broken()
        events += 1
        event = json.loads(line[6:])
        if "error" in event:
          out.error = str(event["error"].get("code") or event["error"].get("message"))
        else:
          out.text += "".join(c["delta"].get("content") or "" for c in event["choices"])
        if enough(events):
          return out
  except (aiohttp.ClientError, ConnectionError) as error:
    out.error, out.done = f"cut: {type(error).__name__}", False
  except TimeoutError:
    out.error, out.done = "hung", False
    silence.broken()
  finally:
    out.silence_s = silence.longest_s
  return out


def _whole(out: Answer, text: str) -> None:
  try:
    value = json.loads(text)
  except ValueError:
    out.error = "not JSON"
    return
  out.done = True
  if "error" in value:
    out.error = str(value["error"].get("code") or value["error"].get("message"))
  else:
    out.text = value["choices"][0]["message"]["content"]


@dataclass
class Tally:
  """What became of all requests; `bad` says in words what must not be."""
  counts: collections.Counter[str] = field(default_factory=collections.Counter)
  bad: list[str] = field(default_factory=list)
  longest_silence_s: float = 0.0

  def judge(self, case: Case, answer: Answer, expected: str, left: bool) -> None:
    self.longest_silence_s = max(self.longest_silence_s, answer.silence_s)
    self.counts["resumed"] += answer.resumed
    if answer.silence_s > SILENCE_S:
      self.counts["SILENT"] += 1
      self.bad.append(f"{case.name}: {answer.silence_s:.1f} s of silence, then {answer.error or 'text'}")
    if answer.error in ("hung", "not JSON") or answer.error.startswith("cut"):
      self.counts[answer.error.upper()] += 1
      self.bad.append(f"{case.name}: {answer.error} after {answer.text[-60:]!r}")
    elif answer.error:
      self.counts[f"error {answer.error}" if answer.status == 200 else f"{answer.status} {answer.error}"] += 1
    elif left:
      self.counts["left or cancelled"] += 1
      if not expected.startswith(answer.text):
        self._wrong(case, answer, expected)
    elif answer.text == expected and answer.done:
      self.counts["exact"] += 1
    else:
      self._wrong(case, answer, expected)

  def _wrong(self, case: Case, answer: Answer, expected: str) -> None:
    self.counts["WRONG"] += 1
    self.bad.append(f"{case.name}: {answer.status} done {answer.done} {answer.text!r} instead of {expected!r}")


class Hoard:
  """Clients of one node, who ask again and again until they are told to stop."""
  def __init__(self, url: str, count: int, expected: dict[str, str], pick: random.Random, pause_s: float) -> None:
    self._url, self._count, self._expected, self._pick, self._pause_s = url, count, expected, pick, pause_s
    self._cases = cases()
    self.tally = Tally()
    self.ending = asyncio.Event()

  async def run(self) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=GIVE_UP_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
      await asyncio.gather(*(self._client(session) for _ in range(self._count)))

  async def _client(self, session: aiohttp.ClientSession) -> None:
    while not self.ending.is_set():
      case = self._pick.choice(self._cases)
      how = self._pick.choices(("streamed", "whole", "leaves"), (65, 25, 10))[0]
      body = case.body | ({} if how == "whole" else {"stream": True})
      leaves_at = self._pick.randrange(1, 10) if how == "leaves" else 0
      answer = await ask(
          session,
          self._url,
          body,
          lambda count, at=leaves_at: bool(at) and count >= at  # type: ignore[misc]
      )
      self.tally.judge(case, answer, self._expected[case.name], left=bool(leaves_at) and not answer.done)
      pause_s = self._pick.uniform(0, 2 * self._pause_s) + (3.0 if answer.status in (429, 503) else 0.0)
      try:
        await asyncio.wait_for(self.ending.wait(), pause_s)
      except TimeoutError:
        continue
