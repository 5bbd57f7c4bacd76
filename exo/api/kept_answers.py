"""Streamed answers that go on without their client for a while, and are taken up again by their id."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from aiohttp import web

from exo.api.errors import describe
from exo.errors import RequestNotFoundError, in_words
from exo.log import log
from exo.tasks import TaskOwner

KEPT_S = 600.0
MAX_ANSWERS = 16
MAX_OF_ONE_CLIENT = 8
MAX_BYTES = 4 * 2**20
_EVENT_BYTES = 64  # beside its text
_ENCODER = msgspec.json.Encoder()


class ChunkWriter(Protocol):
  """Where a streamed answer is written to: a client's connection, or what is kept of it."""
  async def send(self, value: Any, *, more: bool = False) -> None:
    ...

  async def comment(self, text: str) -> None:
    ...

  async def flush(self) -> None:
    ...


@dataclass(eq=False)
class _Reader:
  at: int  # the number of the event that it has last


class KeptAnswer:
  """Events, numbered from 1, of an answer that is written here and read by any number of connections.

  One that has grown too long to be kept is ended when its last reader leaves, as every other answer.
  """
  def __init__(self, owner: str, max_bytes: int) -> None:
    self.owner, self._max_bytes = owner, max_bytes
    self.id, self.exact, self.relaxed = "", False, ()  # type: str, bool, tuple[str, ...]
    self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    self.over = False
    self.lasting = True
    self.left: Callable[[KeptAnswer], None] = lambda _: None
    self._events: list[bytes] = []
    self._dropped = 0  # events before those that are here
    self._size = 0
    self._readers: set[_Reader] = set()
    self._news = asyncio.Event()

  # written by the answer

  def open(self, answer_id: str, exact: bool, relaxed: tuple[str, ...]) -> None:
    """It has been accepted: from here on its client may leave."""
    self.id, self.exact, self.relaxed = answer_id, exact, relaxed
    if not self.opened.done():
      self.opened.set_result(None)

  async def send(self, value: Any, *, more: bool = False) -> None:
    """See `EventStream.send`; who reads takes at once what is there, hence nothing waits."""
    number = self._dropped + len(self._events) + 1
    self._add(b"id: %d\ndata: %s\n\n" % (number, _ENCODER.encode(value)))

  async def comment(self, text: str) -> None:
    self._add(f": {text}\n\n".encode())

  async def flush(self) -> None:
    """Nothing waits here."""

  def fail(self, error: BaseException) -> None:
    """Before it is opened its client gets the error itself, later an event that tells of it."""
    if not self.opened.done():
      self.opened.set_exception(error)
      return
    number = self._dropped + len(self._events) + 1
    self._add(b"id: %d\ndata: %s\n\n" % (number, _ENCODER.encode(describe(error)[1])))

  def end(self) -> None:
    self.over = True
    self._tell()

  def _add(self, event: bytes) -> None:
    self._events.append(event)
    self._size += len(event) + _EVENT_BYTES
    if self._size > self._max_bytes:
      self.lasting = False
      self._drop()
      if not self._readers:
        self.left(self)
    self._tell()

  def _drop(self) -> None:
    """What every reader has is wanted by nobody else any more."""
    had = min((reader.at for reader in self._readers), default=self._dropped + len(self._events))
    gone = self._events[:max(0, had - self._dropped)]
    del self._events[:len(gone)]
    self._dropped += len(gone)
    self._size -= sum(len(event) + _EVENT_BYTES for event in gone)

  def _tell(self) -> None:
    news, self._news = self._news, asyncio.Event()
    news.set()

  # read by connections

  @property
  def is_read(self) -> bool:
    return bool(self._readers)

  @contextmanager
  def reader(self, after: int) -> Iterator[Callable[[], Awaitable[bytes]]]:
    """Gives what waits for the events that come after number `after`, "" once there are no more."""
    reader = _Reader(max(after, self._dropped))
    self._readers.add(reader)

    async def next_events() -> bytes:
      while reader.at >= self._dropped + len(self._events):
        if self.over:
          return b""
        await self._news.wait()
      events = self._events[reader.at - self._dropped:]
      reader.at += len(events)
      return b"".join(events)

    try:
      yield next_events
    finally:
      self._readers.discard(reader)
      if not self._readers:
        self.left(self)


class KeptAnswers:
  """Those of one node, bounded in number, size and the time that nobody reads them. `close` ends them all."""
  def __init__(
      self,
      *,
      most: int = MAX_ANSWERS,
      most_of_one: int = MAX_OF_ONE_CLIENT,
      max_bytes: int = MAX_BYTES,
      kept_s: float = KEPT_S
  ) -> None:
    self._most, self._most_of_one, self._max_bytes, self._kept_s = most, most_of_one, max_bytes, kept_s
    self._answers: dict[KeptAnswer, asyncio.Task[None]] = {}
    self._timers: dict[KeptAnswer, asyncio.TimerHandle] = {}
    self._tasks = TaskOwner("kept answers")

  def __len__(self) -> int:
    return len(self._answers)

  def has_room(self, owner: str) -> bool:
    """For one more of this client's; one that is over and that nobody reads makes way."""
    own = [answer for answer in self._answers if answer.owner == owner]
    crowded = len(own) >= self._most_of_one
    if not crowded and len(self._answers) < self._most:
      return True
    idle = next((a for a in (own if crowded else self._answers) if a.over and not a.is_read), None)
    if idle is not None:
      self._forget(idle)
    return idle is not None

  async def start(self, owner: str, work: Callable[[KeptAnswer], Awaitable[None]]) -> KeptAnswer:
    """Have `work` write an answer, once it is accepted. Raises what it is refused with."""
    answer = KeptAnswer(owner, self._max_bytes)
    task = self._tasks.spawn(self._write(answer, work), "an answer")
    self._answers[answer] = task
    answer.left = self._left
    try:
      await asyncio.shield(answer.opened)
    except BaseException:
      self._forget(answer)
      raise
    self._left(answer)  # until its reader comes, in a moment
    return answer

  async def _write(self, answer: KeptAnswer, work: Callable[[KeptAnswer], Awaitable[None]]) -> None:
    try:
      await work(answer)
    except Exception as error:  # noqa: BLE001 - whoever reads the answer gets it
      if answer.opened.done():
        log(1, "answer %s: %s", answer.id, in_words(error))
      answer.fail(error)
    finally:
      answer.end()

  def find(self, answer_id: str, owner: str | None) -> KeptAnswer:
    """`owner` None: anybody's. Raises `RequestNotFoundError`."""
    for answer in self._answers:
      if answer.id == answer_id and answer.lasting and owner in (None, answer.owner):
        return answer
    raise RequestNotFoundError(
        f"nothing is kept of an answer {answer_id[:80]!r}: it was not asked for with keep_running, its time is over, or "
        "another node has it: ask again",
        code="response_lost"
    )

  def _left(self, answer: KeptAnswer) -> None:
    """Nobody reads it: it has a while."""
    if answer not in self._answers:
      return
    if not answer.lasting:
      self._forget(answer)
      return
    if (old := self._timers.pop(answer, None)) is not None:
      old.cancel()
    loop = asyncio.get_running_loop()
    self._timers[answer] = loop.call_later(self._kept_s, self._time_is_over, answer)

  def _time_is_over(self, answer: KeptAnswer) -> None:
    if not answer.is_read:
      self._forget(answer)

  def _forget(self, answer: KeptAnswer) -> None:
    if (timer := self._timers.pop(answer, None)) is not None:
      timer.cancel()
    if (task := self._answers.pop(answer, None)) is not None:
      task.cancel()

  async def close(self) -> None:
    for answer in list(self._answers):
      self._forget(answer)
    await self._tasks.close()


KEPT_ANSWERS = web.AppKey("kept_answers", KeptAnswers)
