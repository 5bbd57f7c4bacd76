"""Line 17: disks that are slow or do not answer, and models that are exchanged on them."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from exo.download import model_index
from exo.download.model_store import Holding, ModelEntry, ModelStore
from exo.download.sparse_file import SparseFile
from exo.errors import DownloadError, ModelNotFoundError
from exo.inference.weights.checkpoint import Checkpoint
from exo.networking.model_messages import FindModel
from exo.orchestration import model_catalog
from exo.orchestration.model_catalog import ModelCatalog
from test.support.models import put_other_weights
from test.support.nodes import ROOT, NodeProcess, ring, wait_until
from test.support.stores import Ring, hub_here, store

TINY = ROOT / "test" / "data" / "goldens" / "llama"
SEEN_S = 1.1  # a change on disk is seen at the first request that comes so long after the last look


class CountingStore(ModelStore):
  """Remembers which thread looked for which name."""
  def __init__(self, home: Path, shelf: Path) -> None:
    self.looks: list[tuple[str, int]] = []
    super().__init__(home, model_dirs=[shelf])

  def find(self, name: str) -> ModelEntry:
    self.looks.append((name, threading.get_ident()))
    return super().find(name)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
  for name in ("one", "two"):
    shutil.copytree(TINY, tmp_path / "shelf" / name)
  return tmp_path / "shelf"


def test_line_17_a_name_is_looked_up_once_and_off_the_event_loop(shelf: Path, tmp_path: Path) -> None:
  one = CountingStore(tmp_path / "home", shelf)
  catalog = ModelCatalog(one)

  async def work() -> None:
    infos = await asyncio.gather(*(catalog.info("one") for _ in range(30)))
    assert len({id(info) for info in infos}) == 1
    for _ in range(30):
      await catalog.info("one")
      await catalog.checkpoint("one")
    with pytest.raises(ModelNotFoundError):
      await catalog.find("three")
    await one.close()

  asyncio.run(work())
  looks = Counter(name for name, _ in one.looks)
  assert looks["three"] == 1 and looks["one"] <= 4  # one for each second that this takes
  assert threading.get_ident() not in {thread for _, thread in one.looks}


def test_line_17_a_name_that_is_not_there_is_found_as_soon_as_it_is(shelf: Path, tmp_path: Path) -> None:
  catalog = ModelCatalog(ModelStore(tmp_path / "home", model_dirs=[shelf]))

  async def work() -> None:
    with pytest.raises(ModelNotFoundError):
      await catalog.info("late")
    shutil.copytree(TINY, shelf / "late")
    assert (await catalog.info("late")).n_layers
    shutil.rmtree(shelf / "late")
    await asyncio.sleep(SEEN_S)
    with pytest.raises(ModelNotFoundError):
      await catalog.info("late")
    await catalog.store.close()

  asyncio.run(work())


def test_line_17_a_disk_that_does_not_answer_holds_up_nobody_whose_model_is_open(shelf: Path, tmp_path: Path) -> None:
  stuck, one = threading.Event(), CountingStore(tmp_path / "home", shelf)
  catalog = ModelCatalog(one)

  async def work() -> None:
    before = await catalog.info("one")
    looked, find = len(one.looks), one.find
    one._index._find = lambda name: (stuck.wait(20), find(name))[1]
    await asyncio.sleep(SEEN_S)
    async with asyncio.timeout(10):
      assert await catalog.info("one") is before and len(one.looks) == looked
    stuck.set()
    await one.close()

  asyncio.run(work())


def test_line_17_a_disk_that_does_not_answer_is_an_error_for_who_asks_first(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(model_index, "_GIVE_UP_S", 0.2)
  stuck, one = threading.Event(), CountingStore(tmp_path / "home", shelf)
  find = one.find
  one._index._find = lambda name: (stuck.wait(20), find(name))[1]

  async def work() -> None:
    with pytest.raises(DownloadError, match="does not answer"):
      await one.look_up("one")
    stuck.set()
    assert (await one.look_up("one")).id == "one"
    await one.close()

  asyncio.run(work())


def test_line_17_one_models_slow_opening_delays_no_other(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  opening, go_on, opened = threading.Event(), threading.Event(), model_catalog.open_checkpoint

  def slow(path: Path) -> Checkpoint:
    if path.name == "one":
      opening.set()
      assert go_on.wait(30)
    return opened(path)

  monkeypatch.setattr(model_catalog, "open_checkpoint", slow)
  catalog = ModelCatalog(ModelStore(tmp_path / "home", model_dirs=[shelf]))

  async def work() -> None:
    first = asyncio.create_task(catalog.info("one"))
    await asyncio.to_thread(opening.wait, 10)
    async with asyncio.timeout(10):
      assert (await catalog.info("two")).id == "two"
    assert not first.done()
    go_on.set()
    assert (await first).id == "one"
    await catalog.store.close()

  asyncio.run(work())


def test_line_17_what_is_served_of_one_model_forgets_nothing_of_another(shelf: Path, tmp_path: Path) -> None:
  asked: list[str] = []

  class Counting(ModelStore):
    def holding(self, name: str) -> Holding | None:
      asked.append(name)
      return super().holding(name)

  ring_of_two = Ring({"a": Counting(tmp_path / "a", model_dirs=[shelf]), "b": store(tmp_path / "b")})

  async def work() -> None:
    for _ in range(20):
      for name in ("one", "two", "nowhere"):
        await ring_of_two.sharing["a"].answer(FindModel(name))
    for one in ring_of_two.stores.values():
      await one.close()

  began = time.monotonic()
  asyncio.run(work())
  looks, periods = Counter(asked), 1 + (time.monotonic() - began) // 2
  assert looks["one"] <= periods and looks["two"] <= periods


def test_line_17_downloads_that_are_busy_with_the_disk_hold_up_nobody(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """However many there are: models that are here are opened meanwhile."""
  go_on, verify, verifying = threading.Event(), SparseFile.verify, Counter[str]()

  def slow(file: SparseFile) -> bool:
    verifying[file.path.parent.name] += 1
    return go_on.wait(60) and verify(file)

  monkeypatch.setattr(SparseFile, "verify", slow)
  one = ModelStore(tmp_path / "home", model_dirs=[shelf])
  catalog = ModelCatalog(one)

  async def work() -> None:
    downloads = [asyncio.create_task(one.fetch(one.find(name))) for name in repos]
    while not verifying:  # noqa: ASYNC110 - nobody tells of it
      await asyncio.sleep(0.05)
    await asyncio.sleep(1)
    async with asyncio.timeout(20):
      assert (await catalog.info("one")).n_layers == (await catalog.info("two")).n_layers
    go_on.set()
    await asyncio.gather(*downloads)
    await one.close()

  repos = {f"org/tiny{i}": TINY for i in range(40)}
  with hub_here(repos, tmp_path):
    asyncio.run(work())


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  home = tmp_path_factory.mktemp("home")
  (home / "shelf").mkdir()
  with ring(home, 1, "--inference-engine", "onnx", "--model-dir", str(home / "shelf")) as nodes:
    yield nodes[0]


def test_line_17_a_model_that_is_exchanged_on_disk_is_served_from_what_lies_there_now(node: NodeProcess) -> None:
  folder = node.home / "shelf" / "tiny"
  shutil.copytree(TINY, folder)

  def answer() -> object:
    status, body = node.chat("t5 t7 t9", model="tiny", max_tokens=8, temperature=0)
    assert status == 200, body
    return body["choices"][0]["message"]["content"]

  first = answer()
  assert answer() == first
  seen = {first}
  for seed in (1, 2):
    put_other_weights(folder, seed)
    time.sleep(SEEN_S)
    now = answer()
    assert now not in seen and answer() == now
    seen.add(now)
  shutil.rmtree(folder)
  time.sleep(SEEN_S)
  status, body = node.chat("t5 t7 t9", model="tiny", max_tokens=8)
  assert status == 404, body
  shutil.copytree(TINY, folder)
  assert wait_until(answer, 10, "the model's return") == first
