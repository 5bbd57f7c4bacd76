"""What is found out about stages while nobody wants their device: begun again when it was broken off, kept, and told once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from exo.errors import EngineError, ProtocolError
from exo.inference.dummy.checkpoint import DummyCheckpoint
from exo.inference.dummy.engine import DummyStage
from exo.inference.engine import LoadOptions, Study
from exo.inference.exactness import CAREFUL, Exactness
from exo.inference.offer import EngineOffer
from exo.inference.shard import Shard
from exo.networking.grpc.codec import decode, encode
from exo.networking.messages import ExactnessFound, PlanOpened
from exo.worker import studies
from exo.worker.studies import Studies
from exo.worker.worker import Worker, WorkerOptions

FOUND = Exactness(3, 8, True, 3, False)


class StudiedStage(DummyStage):
  """One about which something can be found out."""
  def __init__(self, run: Callable[[Callable[[], bool]], Exactness | None], n_bytes: int = 0, key: str = "k") -> None:
    checkpoint = DummyCheckpoint()
    n = checkpoint.config.n_layers
    super().__init__(Shard("dummy", 0, n - 1, n), checkpoint.config.vocab_size, LoadOptions(2**30, 1), set())
    self._study: Study | None = Study(key, n_bytes, run)
    self.learned: list[Exactness] = []

  def to_study(self) -> Study | None:
    return self._study

  def learn(self, exactness: Exactness) -> None:
    self.learned.append(exactness)
    self._study = None


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(studies, "_QUIET_S", 0.05)


def run(folder: Path, stage: StudiedStage, busy: Callable[[], bool] = lambda: False) -> Exactness | None:
  async def scenario() -> Exactness | None:
    worker = Worker("cpu", "here", [EngineOffer("dummy", "CPU", "", 0)], 2**30, WorkerOptions())
    of = Studies(folder)
    await of.recall(worker, stage)
    found = await asyncio.wait_for(of.run(worker, stage, busy), 20)
    await worker.close()
    return found

  return asyncio.run(scenario())


def test_issue_19_what_was_found_out_is_kept_and_known_at_the_next_load(tmp_path: Path) -> None:
  stage = StudiedStage(lambda _: FOUND)
  assert run(tmp_path, stage) == FOUND and stage.learned == [FOUND]
  again = StudiedStage(lambda _: pytest.fail("it is known"))
  assert run(tmp_path, again) is None and again.learned == [FOUND], "recalled as it was loaded"


def test_issue_19_a_study_that_is_broken_off_is_begun_again(tmp_path: Path) -> None:
  begun = []

  def study(is_unwanted: Callable[[], bool]) -> Exactness | None:
    begun.append(1)
    return None if len(begun) < 6 else FOUND

  assert run(tmp_path, StudiedStage(study)) == FOUND and len(begun) == 6


def test_issue_19_a_study_that_fails_twice_is_left(tmp_path: Path) -> None:
  begun = []

  def study(is_unwanted: Callable[[], bool]) -> Exactness | None:
    begun.append(1)
    raise EngineError("its process ended by SIGILL")

  stage = StudiedStage(study)
  assert run(tmp_path, stage) is None and len(begun) == 2 and not stage.learned


def test_issue_19_one_without_room_keeps_no_other_from_being_studied(tmp_path: Path) -> None:
  async def scenario() -> None:
    worker = Worker("cpu", "here", [EngineOffer("dummy", "CPU", "", 0)], 2**30, WorkerOptions())
    of = Studies(tmp_path)
    large = asyncio.create_task(of.run(worker, StudiedStage(lambda _: FOUND, 2**60, "large"), lambda: False))
    await asyncio.sleep(0.1)
    assert await asyncio.wait_for(of.run(worker, StudiedStage(lambda _: FOUND), lambda: False), 20) == FOUND
    large.cancel()
    await worker.close()

  asyncio.run(scenario())


def test_issue_19_a_study_ends_with_its_plan(tmp_path: Path) -> None:
  ended = []

  def study(is_unwanted: Callable[[], bool]) -> Exactness | None:
    while not is_unwanted():
      pass
    ended.append(1)
    return None

  async def scenario() -> None:
    worker = Worker("cpu", "here", [EngineOffer("dummy", "CPU", "", 0)], 2**30, WorkerOptions())
    task = asyncio.create_task(Studies(tmp_path).run(worker, StudiedStage(study), lambda: False))
    await asyncio.sleep(0.5)
    task.cancel()
    async with asyncio.timeout(10):
      while not ended:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await worker.close()

  asyncio.run(scenario())


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"k": 1}', '{"k": [0, 12, true, 0, true]}', '{"k": [0, 512, true, 0, true]}']
)
def test_issue_19_what_cannot_have_been_found_out_counts_for_nothing(text: str, tmp_path: Path) -> None:
  (tmp_path / "exactness.json").write_text(text)
  assert run(tmp_path, StudiedStage(lambda _: FOUND)) == FOUND
  assert json.loads((tmp_path / "exactness.json").read_text()) == {"k": [3, 8, True, 3, False]}


def test_issue_19_one_bad_line_takes_no_other_along(tmp_path: Path) -> None:
  (tmp_path / "exactness.json").write_text('{"k": [3, 8, true, 3, false], "other": "?"}')
  stage = StudiedStage(lambda _: pytest.fail("it is known"))
  run(tmp_path, stage)
  assert stage.learned == [FOUND]


@pytest.mark.parametrize(
    "message",
    [ExactnessFound("p", 1, FOUND),
     PlanOpened("p", 9, 1, 9, 0, 9, FOUND),
     PlanOpened("p", 9, 1, 9, 0, 9, CAREFUL)]
)
def test_issue_19_stages_tell_of_it(message: ExactnessFound | PlanOpened) -> None:
  assert decode(encode(message))[0] == message


@pytest.mark.parametrize("wrong", [Exactness(0, 12), Exactness(0, 512), Exactness(2**20)], ids=str)
def test_issue_19_a_peer_cannot_ask_for_pieces_that_there_are_not(wrong: Exactness) -> None:
  with pytest.raises(ProtocolError, match="cannot be exact with"):
    decode(encode(ExactnessFound("p", 0, wrong)))
