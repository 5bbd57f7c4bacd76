"""What is kept for clients over the whole ring: on the node that was asked, and found from the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from exo.errors import (
    ExoError,
    ProtocolError,
    RecordDamagedError,
    RecordNotFoundError,
    RecordsUnavailableError,
    in_words,
)
from exo.log import log
from exo.networking.messages import Message
from exo.networking.record_messages import (
    MAX_RECORD_BYTES,
    MAX_RECORD_JSON,
    ChangeRecord,
    FindRecord,
    Outcome,
    RecordChanged,
    RecordFound,
)
from exo.orchestration.record import Owner, Record, RecordChange, is_record_id, owner_of, record_from, seal, unseal
from exo.orchestration.record_store import RecordStore
from exo.tasks import in_own_thread

_DISK_S, _ASK_S = 5.0, 10.0
_AT_ONCE = 16  # threads that wait for the disk
_ASKED_AT_ONCE = 4  # by all other nodes together

Call = Callable[[str, Message, float], Awaitable[Message]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
  """`node_id` is "" for this node."""
  record: Record
  node_id: str = ""


class KeptRecords:
  """`allowed`: clients may have something kept here. What belongs to nobody leaves this node only where all nodes of the ring hold
  one secret (`ring_is_keyed`): its id alone would open it.
  """
  def __init__(
      self, store: RecordStore, peers: Callable[[], Iterable[str]], call: Call, *, allowed: bool, ring_is_keyed: bool
  ) -> None:
    self._store, self._peers, self._call = store, peers, call
    self.allowed, self._ring_is_keyed = allowed, ring_is_keyed
    self._disk, self._asked = asyncio.Semaphore(_AT_ONCE), asyncio.Semaphore(_ASKED_AT_ONCE)

  async def _on_disk(self, work: Callable[[], T]) -> T:
    """Raises `RecordsUnavailableError` for a disk that is full, fails or stands still."""
    try:
      async with asyncio.timeout(_DISK_S):
        async with self._disk:
          return await in_own_thread(work, _DISK_S)
    except TimeoutError as error:
      raise RecordsUnavailableError("what is kept cannot be reached: the disk of this node does not answer") from error
    except OSError as error:
      log(0, "what is kept for clients: %s", in_words(error))
      raise RecordsUnavailableError(
          f"what is kept cannot be read or written: {error.strerror or 'the disk fails'}"
      ) from error

  async def owner(self, key: str) -> Owner:
    return await asyncio.to_thread(owner_of, key)

  async def keep(self, owner: Owner, record_id: str, json: bytes) -> Record:
    """Raises `RecordsUnavailableError`, also for what is too large."""
    record = await self._sealed(owner, record_id, json)
    await self._on_disk(lambda: self._store.keep(owner, record))
    return record

  @staticmethod
  async def _sealed(owner: Owner, record_id: str, json: bytes) -> Record:
    record = await asyncio.to_thread(owner.seal, record_id, json) if len(json) <= MAX_RECORD_JSON else None
    if record is None or len(record.data) > MAX_RECORD_BYTES:
      raise RecordsUnavailableError(f"{record_id} is full: no more of it can be kept")
    return record

  async def find(self, owner: Owner, record_id: str, *, any_owner: bool = False) -> Found:
    """`any_owner`: what this node keeps may be anybody's.

    Raises `RecordNotFoundError`, `RecordDamagedError`, `RecordsUnavailableError`.
    """
    if not is_record_id(record_id):
      raise RecordNotFoundError(f"nothing is kept under {record_id[:80]!r}")
    damaged: RecordDamagedError | None = None
    try:
      record = await self._on_disk(lambda: self._store.read(owner, record_id))
      if record is None and any_owner:
        record = await self._on_disk(lambda: self._store.read_any(record_id))
      if record is not None:
        return Found(record)
    except RecordDamagedError as error:
      damaged = error
    silent = 0
    if self._ring_is_keyed or not owner.is_nobody:
      found, silent = await self._ask(owner, record_id)
      if found is not None:
        return found
    if damaged is not None:
      raise damaged
    beside = f"; {silent} nodes of the ring did not answer" if silent else ""
    raise RecordNotFoundError(
        f"nothing is kept under {record_id!r}: it was deleted, is too old or was not stored{beside}"
    )

  async def _ask(self, owner: Owner, record_id: str) -> tuple[Found | None, int]:
    """(what the first other node that has it says, how many did not answer). What they made up is left out."""
    question = FindRecord(record_id, owner.proof(record_id))

    async def ask(node_id: str) -> Found | None:
      answer = await self._call(node_id, question, _ASK_S)
      if not isinstance(answer, RecordFound):
        raise ProtocolError(f"it answered a FindRecord with {type(answer).__name__}")
      if not answer.sealed:
        return None
      record = await asyncio.to_thread(_unsealed, owner, record_id, answer.sealed)
      if record.id != record_id or not owner.owns(record):
        raise ProtocolError("it answered with what its owner has not written")
      return Found(record, node_id)

    tasks = {
        asyncio.create_task(ask(node_id), name=f"ask {node_id} for a record"): node_id
        for node_id in self._peers()
    }
    silent = 0
    try:
      for task in asyncio.as_completed(tasks):
        try:
          found = await task
        except (ExoError, TimeoutError) as error:
          log(1, "a node does not say whether it keeps %s: %s", record_id, in_words(error))
          silent += 1
          continue
        if found is not None:
          return found, silent
      return None, silent
    finally:
      for task in tasks:
        task.cancel()
      await asyncio.gather(*tasks, return_exceptions=True)

  async def change(self, owner: Owner, found: Found, json: bytes | None) -> bool:
    """Exchange what was found, where it is kept, or forget it (None); False if it has been changed meanwhile.

    Raises `RecordNotFoundError` for what is gone by now, and `RecordsUnavailableError`.
    """
    record_id, record = found.record.id, None
    if json is not None:
      record = await self._sealed(owner, record_id, json)
    if found.node_id:
      outcome = await self._change_there(owner, found, record)
    else:
      outcome = await self._on_disk(lambda: self._store.change(record_id, found.record.tag, record))
    if outcome == "none":
      raise RecordNotFoundError(f"nothing is kept under {record_id!r} any more")
    if outcome == "failed":
      raise RecordsUnavailableError(f"{found.node_id}, which keeps {record_id}, cannot write to its disk")
    return outcome == "done"

  async def _change_there(self, owner: Owner, found: Found, record: Record | None) -> Outcome:
    record_id = found.record.id
    change = RecordChange(tag=found.record.tag, record=record.to_bytes() if record is not None else b"")
    sealed = await asyncio.to_thread(seal, owner.key(record_id), "change", record_id, msgspec.msgpack.encode(change))
    message = ChangeRecord(record_id, owner.proof(record_id), sealed)
    try:
      answer = await self._call(found.node_id, message, _ASK_S)
    except (ExoError, TimeoutError) as error:
      raise RecordsUnavailableError(f"{found.node_id}, which keeps {found.record.id}, does not answer") from error
    if not isinstance(answer, RecordChanged):
      raise ProtocolError(f"{found.node_id} answered a ChangeRecord with {type(answer).__name__}")
    return answer.outcome

  async def forget(self, owner: Owner, record_id: str, *, any_owner: bool = False) -> None:
    """Raises as `find` does; what is damaged here can be forgotten."""
    if await self._on_disk(lambda: self._store.forget(record_id, owner)):
      return
    if any_owner and await self._on_disk(lambda: self._store.forget(record_id, None)):
      return
    await self.change(owner, await self.find(owner, record_id), None)

  async def answer(self, message: FindRecord | ChangeRecord) -> Message:
    """For another node. Raises `RecordsUnavailableError`."""
    if not self.allowed:
      return RecordFound() if isinstance(message, FindRecord) else RecordChanged("none")
    nobodys = None if self._ring_is_keyed else await self.owner("")
    async with self._asked:
      record = await self._on_disk(lambda: self._store.shown(message.record_id, message.proof, nobodys))
      if isinstance(message, FindRecord):
        return RecordFound(await asyncio.to_thread(record.sealed) if record is not None else b"")
      if record is None:
        return RecordChanged("none")
      change = await asyncio.to_thread(record.opened, message.sealed)
      new = record_from(change.record) if change.record else None
      if new is not None and (new.id != message.record_id or new.seal != record.seal):
        raise ProtocolError("a record is to be exchanged for another one's")
      try:
        outcome = await self._on_disk(lambda: self._store.change(message.record_id, change.tag, new))
      except RecordsUnavailableError:
        outcome = "failed"
      return RecordChanged(outcome)


def _unsealed(owner: Owner, record_id: str, sealed: bytes) -> Record:
  return record_from(unseal(owner.key(record_id), "found", record_id, sealed))
