"""What is kept for clients: bounds, and nodes that make things up or say nothing."""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from pathlib import Path

import msgspec
import pytest

from exo.errors import (
    ExoError,
    PeerUnreachableError,
    RecordDamagedError,
    RecordNotFoundError,
    RecordsUnavailableError,
)
from exo.networking.grpc.codec import decode, encode
from exo.networking.messages import Message
from exo.networking.record_messages import (
    MAX_RECORD_BYTES,
    MAX_SENT_BYTES,
    ChangeRecord,
    FindRecord,
    RecordChanged,
    RecordFound,
)
from exo.orchestration import kept_records
from exo.orchestration.kept_records import Call, Found, KeptRecords
from exo.orchestration.record import Owner, Record, RecordChange, owner_of, record_from, seal
from exo.orchestration.record_store import RecordBounds, RecordStore
from test.support.local_rings import run

ANN, BOB, NOBODY = owner_of("hash of ann's key"), owner_of("hash of bob's key"), owner_of("")


def name(number: int) -> str:
  return f"resp_{number:032x}"


async def no_peer(node_id: str, message: Message, timeout_s: float) -> Message:
  raise PeerUnreachableError("it is gone")


def kept(folder: Path, call: Call = no_peer, *peers: str, keyed: bool = False, allowed: bool = True) -> KeptRecords:
  return KeptRecords(RecordStore(folder), lambda: peers, call, allowed=allowed, ring_is_keyed=keyed)


def test_21_line_1_the_store_is_bounded_and_who_has_most_gives(tmp_path: Path) -> None:
  store = RecordStore(tmp_path, RecordBounds(records=10, total_bytes=2**20, look_every=1))
  store.keep(BOB, BOB.seal(name(999), b"{}"))
  for i in range(30):
    store.keep(ANN, ANN.seal(name(i), b"{}"))
    os.utime(next(tmp_path.rglob(f"{name(i)}*")), (time.time() - 100 + i, ) * 2)
  assert store.read(BOB, name(999)) is not None
  assert store.read(ANN, name(29)) is not None and store.read(ANN, name(0)) is None
  assert len(list(tmp_path.rglob("*.rec"))) <= 10
  large = RecordStore(tmp_path / "large", RecordBounds(total_bytes=200_000, look_every=1))
  for i in range(10):
    large.keep(ANN, ANN.seal(name(i), os.urandom(50_000)))
  assert sum(path.stat().st_size for path in (tmp_path / "large").rglob("*.rec")) <= 200_000


def test_21_line_1_what_nobody_asked_for_is_forgotten(tmp_path: Path) -> None:
  store = RecordStore(tmp_path, RecordBounds(age_s=60, look_every=1))
  for i in range(3):
    store.keep(ANN, ANN.seal(name(i), b"{}"))
  for path in tmp_path.rglob("*.rec"):
    os.utime(path, (time.time() - 61, ) * 2)
  assert store.read(ANN, name(0)) is None
  store.keep(ANN, ANN.seal(name(4), b"{}"))
  assert [path.stem for path in tmp_path.rglob("*.rec")] == [name(4)]


def test_21_line_1_records_are_their_owners(tmp_path: Path) -> None:
  store, record = RecordStore(tmp_path), ANN.seal(name(1), b'{"a": 1}')
  store.keep(ANN, record)
  assert store.read(ANN, name(1)) == record and record.json() == b'{"a": 1}' and store.read(BOB, name(1)) is None
  assert store.shown(name(1), ANN.proof(name(1)), NOBODY) == record
  for proof in (BOB.proof(name(1)), ANN.proof(name(2)), "", record.seal, "\ud800"):
    assert store.shown(name(1), proof, NOBODY) is None
  assert not store.forget(name(1), BOB) and store.forget(name(1), ANN)
  store.keep(NOBODY, NOBODY.seal(name(2), b"{}"))
  assert store.shown(name(2), NOBODY.proof(name(2)), NOBODY) is None
  assert store.shown(name(2), NOBODY.proof(name(2)), None) is not None
  for odd in ("../x", "resp_", name(1).upper(), "resp_" + "0" * 31 + "/", ""):
    assert store.read(ANN, odd) is None and store.read_any(odd) is None and not store.forget(odd, None)


def test_21_line_1_other_nodes_cannot_make_a_record_up(tmp_path: Path) -> None:
  """They are found out by what only the owner's key can make, whatever else they send."""
  true = ANN.seal(name(1), b'{"a": 1}')
  forged = BOB.seal(name(1), b'{"a": 2}')
  bomb = zlib.compress(bytes(100 * 2**20))
  lies: dict[str, bytes | None] = {
      "other owner": forged.sealed(), "other id": ANN.seal(name(2), b"{}").sealed(), "noise": os.urandom(99),
      "plain": true.to_bytes(), "changed": true.sealed()[:-1] + b"x", "short": b"x",
      "other purpose": seal(true.key, "change", true.id, true.to_bytes()),
      "forged inside": seal(true.key, "found", true.id, forged.to_bytes()), "empty": b"", "other message": None
  }

  async def call(node_id: str, message: Message, timeout_s: float) -> Message:
    assert isinstance(message, FindRecord) and message.proof == ANN.proof(name(1))
    if node_id == "honest":
      await asyncio.sleep(0.05)
      return RecordFound(true.sealed())
    lie = lies[node_id]
    return RecordChanged("done") if lie is None else RecordFound(lie)

  async def scenario() -> None:
    with pytest.raises(RecordNotFoundError) as told:
      await kept(tmp_path, call, *lies).find(ANN, name(1))
    assert "9 nodes of the ring did not answer" in told.value.message
    found = await kept(tmp_path, call, *lies, "honest").find(ANN, name(1))
    assert found == Found(msgspec.structs.replace(true, key=b""), "honest")
    with pytest.raises(RecordDamagedError):
      Record(id=name(1), seal="", tag="", data=bomb).json()

  run(scenario)


def test_21_line_1_nodes_that_say_nothing_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  record = ANN.seal(name(1), b"{}")

  async def call(node_id: str, message: Message, timeout_s: float) -> Message:
    if node_id == "honest":
      return RecordFound(record.sealed())
    async with asyncio.timeout(min(timeout_s, 0.3)):
      await asyncio.Event().wait()
    raise AssertionError

  async def scenario() -> None:
    begun = time.monotonic()
    assert (await kept(tmp_path, call, "silent", "honest").find(ANN, name(1))).node_id == "honest"
    assert time.monotonic() - begun < 0.25
    for work in (
        lambda: kept(tmp_path, call, "silent").find(ANN, name(1)),
        lambda: kept(tmp_path, call, "silent").change(ANN, Found(record, "silent"), b"{}")
    ):
      with pytest.raises((RecordNotFoundError, RecordsUnavailableError)):
        await work()
    with pytest.raises(RecordNotFoundError):  # nobody's is asked for nowhere without a cluster key
      await kept(tmp_path, no_peer, "silent").find(NOBODY, name(1))

  run(scenario)


def test_21_line_1_a_disk_that_stands_still_costs_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(kept_records, "_DISK_S", 0.2)
  fifo = tmp_path / ANN.folder / f"{name(1)}.rec"
  fifo.parent.mkdir(parents=True)
  os.mkfifo(fifo)  # opening it waits for a writer

  async def scenario() -> None:
    begun = time.monotonic()
    with pytest.raises(RecordsUnavailableError):
      await kept(tmp_path).find(ANN, name(1))
    assert time.monotonic() - begun < 2
    with fifo.open("wb"):
      pass

  run(scenario)


def test_21_line_1_changes_from_afar_are_checked(tmp_path: Path) -> None:
  home = kept(tmp_path)

  async def call(node_id: str, message: Message, timeout_s: float) -> Message:
    assert isinstance(message, FindRecord | ChangeRecord)
    sent, call_id, _ = decode(encode(message, 7))
    assert sent == message and call_id == 7
    answer = await home.answer(message)
    assert decode(encode(answer, 7, is_reply=True))[0] == answer
    return answer

  async def scenario() -> None:
    afar = kept(tmp_path / "other", call, "home")
    first = await home.keep(ANN, name(1), b'{"n": 1}')
    found = await afar.find(ANN, name(1))
    assert found == Found(msgspec.structs.replace(first, key=b""), "home")
    assert await afar.change(ANN, found, b'{"n": 2}') and not await afar.change(ANN, found, b'{"n": 3}')
    second = (await home.find(ANN, name(1))).record
    assert second.json() == b'{"n": 2}'

    def asked(key: bytes, tag: str, record: bytes = b"", proof: str = ANN.proof(name(1))) -> ChangeRecord:
      change = msgspec.msgpack.encode(RecordChange(tag=tag, record=record))
      return ChangeRecord(name(1), proof, seal(key, "change", name(1), change))

    key = ANN.key(name(1))
    assert await home.answer(asked(key, first.tag)) == RecordChanged("changed")
    assert await home.answer(asked(key, second.tag, proof=BOB.proof(name(1)))) == RecordChanged("none")
    for wrong in (
        asked(BOB.key(name(1)), second.tag),
        asked(key, second.tag,
              BOB.seal(name(1), b"{}").to_bytes()),
        asked(key, second.tag,
              ANN.seal(name(2), b"{}").to_bytes()),
        asked(key, second.tag, b"noise"),
        ChangeRecord(name(1), ANN.proof(name(1)), second.tag.encode())  # all that a proof that was seen is good for
    ):
      with pytest.raises(ExoError):
        await home.answer(wrong)
    with pytest.raises(RecordsUnavailableError):
      await afar.change(ANN, Found(second, "home"), os.urandom(MAX_RECORD_BYTES + 99))
    await afar.forget(ANN, name(1))
    with pytest.raises(RecordNotFoundError):
      await afar.change(ANN, Found(second, "home"), b"{}")
    refusing = kept(tmp_path, allowed=False)
    assert await refusing.answer(FindRecord(name(1), ANN.proof(name(1)))) == RecordFound()

  run(scenario)


def test_21_line_1_what_goes_over_the_wire_is_bounded() -> None:
  for endless in (
      FindRecord("r" * 99, ""),
      FindRecord(name(1), "p" * 99),
      RecordFound(bytes(MAX_SENT_BYTES + 1)),
      ChangeRecord(name(1), "", bytes(MAX_SENT_BYTES + 1)),
      RecordChanged("no such thing")  # type: ignore[arg-type]
  ):
    with pytest.raises(ExoError):
      decode(encode(endless, 1))
  with pytest.raises(RecordDamagedError):
    record_from(b"\x93")
  assert Owner("x").proof(name(1)) not in (Owner("y").proof(name(1)), Owner("x").proof(name(2)))
