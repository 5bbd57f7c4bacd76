"""Fetching from a hub that answers slowly, wrongly, partially or not at all: fault 11 of the robustness list, case by case."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from exo.download.model_store import ModelStore
from exo.download.progress import DownloadProgress
from exo.download.sparse_file import held_spans
from exo.errors import CancelledRequestError, DownloadError, NotDoneError
from exo.inference.weights.block_map import BlockMap, span_bytes
from test.support.disks import own_disk
from test.support.hub import Hub
from test.support.stores import QUICK, DeadEnd, hub_here, store, write_big

REPO = "org/big"
IMPATIENT = replace(QUICK, stall_s=0.5)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """12 MB, so that several pieces of 2 MiB make it."""
  return write_big(tmp_path_factory.mktemp("repo"), 12)


@pytest.fixture
def server(repository: Path, tmp_path: Path) -> Iterator[Hub]:
  with hub_here({REPO: repository}, tmp_path) as playing:
    yield playing


def pull(one: ModelStore, name: str = REPO) -> Path:
  async def work() -> Path:
    try:
      return await one.fetch(one.find(name))
    finally:
      await one.close()

  return asyncio.run(work())


def same(folder: Path, repository: Path) -> bool:
  return all((folder / file.name).read_bytes() == file.read_bytes() for file in repository.iterdir())


def test_a_model_arrives_whole_and_is_asked_for_once(server: Hub, repository: Path, tmp_path: Path) -> None:
  seen: list[DownloadProgress] = []
  one = store(tmp_path / "home")
  one.listen(seen.append)
  folder = pull(one)
  assert folder == tmp_path / "home" / "org--big" and same(folder, repository)
  assert server.bytes_sent == sum(file.stat().st_size for file in repository.iterdir())
  assert seen[-1].done and seen[-1].from_hub_bytes == server.bytes_sent and seen[-1].fraction == 1
  assert [p.downloaded_bytes for p in seen
          if p.status == "downloading"] == sorted(p.downloaded_bytes for p in seen if p.status == "downloading")
  server.forget()
  pull(store(tmp_path / "home"))
  assert server.requests == []


def test_two_requests_for_one_model_make_one_download(server: Hub, repository: Path, tmp_path: Path) -> None:
  async def both() -> None:
    here, there = store(tmp_path / "home"), store(tmp_path / "home")  # the second as another process would be
    await asyncio.gather(*(one.fetch(one.find(REPO)) for one in (here, here, there)))
    await here.close()
    await there.close()

  asyncio.run(both())
  assert server.bytes_sent == sum(file.stat().st_size for file in repository.iterdir())


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_passing_failures_are_tried_again(server: Hub, repository: Path, tmp_path: Path, status: int) -> None:
  server.faults.status = [status] * 2
  assert same(pull(store(tmp_path / "home")), repository)


def test_retry_after_is_waited_for(server: Hub, tmp_path: Path) -> None:
  server.faults.status, server.faults.retry_after = [429], "1"
  begun = asyncio.run(_timed(pull, store(tmp_path / "home")))
  assert begun >= 1.0


async def _timed(work: object, *args: object) -> float:
  loop = asyncio.get_running_loop()
  before = loop.time()
  await asyncio.to_thread(work, *args)  # type: ignore[arg-type]
  return loop.time() - before


def test_a_server_that_stays_broken_is_named_and_given_up(server: Hub, tmp_path: Path) -> None:
  server.faults.status = [503] * 100
  with pytest.raises(DownloadError, match="the hub answers 503"):
    pull(store(tmp_path / "home"))
  assert len(server.requests) == 4  # as many as the policy allows


@pytest.mark.parametrize(("status", "words"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "no repository|has no")])
def test_terminal_answers_are_not_tried_again(server: Hub, tmp_path: Path, status: int, words: str) -> None:
  server.faults.status = [status] * 100
  with pytest.raises(DownloadError, match=words):
    pull(store(tmp_path / "home"))
  assert len(server.requests) == 1


def test_a_file_that_is_refused_or_gone_is_final_too(server: Hub, tmp_path: Path) -> None:
  for status, words in ((401, "HF_TOKEN"), (403, "accept its terms"), (404, "has no file")):
    server.forget()
    server.faults.status = [200, *([status] * 50)]
    with pytest.raises(DownloadError, match=words):
      pull(store(tmp_path / f"home{status}"))
    assert len(server.requests) <= 3  # the list, and one request for each of the two small files at most


def test_a_gated_repository_says_where_to_accept(server: Hub, tmp_path: Path) -> None:
  server.faults.gated = True
  with pytest.raises(DownloadError, match=rf"accept its terms at {server.url}/org/big"):
    pull(store(tmp_path / "home"))


def test_an_unknown_repository_and_revision_are_named(server: Hub, tmp_path: Path) -> None:
  with pytest.raises(DownloadError, match="the hub has no repository org/none"):
    pull(store(tmp_path / "home"), "org/none")
  with pytest.raises(DownloadError, match="org/big has no revision 'nowhere'"):
    pull(store(tmp_path / "home"), "org/big@nowhere")


def test_a_broken_connection_resumes_where_it_broke(server: Hub, repository: Path, tmp_path: Path) -> None:
  size = (repository / "model.safetensors").stat().st_size
  server.faults.cut_after, server.faults.file = 5 * 2**20, "model.safetensors"
  assert same(pull(store(tmp_path / "home")), repository)
  assert server.sent["model.safetensors"] < size * 1.25  # only what lay in half-filled blocks came twice
  assert sum("model.safetensors bytes=" in request for request in server.requests) >= 3


def test_a_stall_is_noticed_and_the_rest_comes_over_a_new_connection(
    server: Hub, repository: Path, tmp_path: Path
) -> None:
  server.faults.stall_after, server.faults.file = 3 * 2**20, "model.safetensors"
  assert same(pull(store(tmp_path / "home", retry=IMPATIENT)), repository)


def test_a_download_that_was_interrupted_goes_on_in_another_process(
    server: Hub, repository: Path, tmp_path: Path
) -> None:
  server.faults.status = []
  server.faults.cut_after, server.faults.file = 4 * 2**20, "model.safetensors"
  server.faults.stall_after = 0
  with pytest.raises(DownloadError, match="What came is kept"):
    pull(store(tmp_path / "home", retry=IMPATIENT))
  server.faults.stall_after = None
  server.faults.cut_after = None
  before = server.sent["model.safetensors"]
  held = span_bytes(held_spans(tmp_path / "home" / "org--big" / "model.safetensors"))
  assert same(pull(store(tmp_path / "home")), repository)
  size = (repository / "model.safetensors").stat().st_size
  assert server.sent["model.safetensors"] - before == size - held


def test_a_mirror_that_answers_200_to_a_range_restarts_and_never_appends(
    server: Hub, repository: Path, tmp_path: Path
) -> None:
  server.faults.ignore_ranges = True
  folder = pull(store(tmp_path / "home"))
  assert same(folder, repository)
  assert (folder / "model.safetensors").stat().st_size == (repository / "model.safetensors").stat().st_size


def test_another_range_than_asked_for_is_refused(server: Hub, tmp_path: Path) -> None:
  server.faults.wrong_range = True
  with pytest.raises(DownloadError, match="another range than was asked for"):
    pull(store(tmp_path / "home"))


def test_garbled_bytes_are_found_by_the_hash_and_fetched_again(server: Hub, repository: Path, tmp_path: Path) -> None:
  async def later() -> Path:
    one = store(tmp_path / "home")
    await one.head(one.find(REPO))
    server.faults.corrupt, server.faults.file = 1, "model.safetensors"
    path = await one.fetch(one.find(REPO))
    await one.close()
    return path

  assert same(asyncio.run(later()), repository)


def test_a_source_that_stays_damaged_is_never_used(server: Hub, tmp_path: Path) -> None:
  async def work() -> None:
    one = store(tmp_path / "home")
    await one.head(one.find(REPO))
    server.faults.corrupt, server.faults.file = 100, "model.safetensors"
    try:
      await one.fetch(one.find(REPO))
    finally:
      await one.close()

  with pytest.raises(DownloadError, match="does not have the hash that its repository tells"):
    asyncio.run(work())
  assert held_spans(tmp_path / "home" / "org--big" / "model.safetensors") == []
  server.faults.corrupt = 0
  assert pull(store(tmp_path / "home"))


def test_files_that_are_cut_off_or_changed_on_disk_are_mended(server: Hub, repository: Path, tmp_path: Path) -> None:
  folder = pull(store(tmp_path / "home"))
  weights = folder / "model.safetensors"
  os.truncate(weights, weights.stat().st_size // 2)
  assert same(pull(store(tmp_path / "home")), repository)
  server.forget()
  with weights.open("r+b") as file:
    file.seek(7_000_000)
    file.write(b"rotten")
  assert same(pull(store(tmp_path / "home")), repository)
  assert server.bytes_sent <= 2 * BlockMap(folder / ".exo" / "model.safetensors.blocks", writable=False).block
  (folder / "config.json").unlink()
  assert same(pull(store(tmp_path / "home")), repository)


def test_too_little_room_is_said_before_anything_is_fetched(server: Hub, tmp_path: Path) -> None:
  server.faults.claimed_size, server.faults.file = 1 << 42, "model.safetensors"
  with pytest.raises(DownloadError, match=r"org/big needs 4\.0 TB more in .* [GT]B are free: make room"):
    pull(store(tmp_path / "home"))
  assert server.sent["model.safetensors"] <= 2**22  # the block with the header


def test_a_disk_that_fills_up_keeps_what_came(server: Hub, repository: Path, tmp_path: Path) -> None:
  with own_disk(tmp_path / "home", "size=30m") as home:
    one = store(home)

    async def work() -> None:
      await one.head(one.find(REPO))
      with pytest.MonkeyPatch.context() as patch:  # somebody else fills the disk after we have looked
        usage = shutil.disk_usage(home)
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        (home / "other").write_bytes(bytes(20 * 2**20))
        with pytest.raises(DownloadError, match="the disk is full"):
          await one.fetch(one.find(REPO))
      (home / "other").unlink()
      held = span_bytes(held_spans(home / "org--big" / "model.safetensors"))
      assert held > 2**20
      before = server.sent["model.safetensors"]
      await one.fetch(one.find(REPO))
      assert server.sent["model.safetensors"] - before <= (repository / "model.safetensors").stat().st_size - held
      await one.close()

    asyncio.run(work())
    assert same(home / "org--big", repository)


def test_a_folder_that_cannot_be_written_is_named(server: Hub, tmp_path: Path) -> None:
  (tmp_path / "home").write_text("a file where a folder should be")
  with pytest.raises(DownloadError, match=r"cannot be written.*EXO_HOME"):
    pull(store(tmp_path / "home"))


def test_a_hub_out_of_reach_is_told_quickly(server: Hub, tmp_path: Path) -> None:
  server.server_close()
  server.shutdown()
  with pytest.raises(DownloadError, match=r"cannot be reached.*HF_ENDPOINT"):
    pull(store(tmp_path / "home"))


def test_the_token_goes_to_the_hub_and_to_no_other_host(server: Hub, repository: Path, tmp_path: Path) -> None:
  """Requirement 6: no redirect carries the token to another host."""
  from test.support.hub import hub
  (tmp_path / "hf-token").write_text("hf_secret")
  with hub({REPO: repository}) as other:
    server.faults.redirect_to = other.url
    assert same(pull(store(tmp_path / "home")), repository)
    assert set(server.authorizations) == {"Bearer hf_secret"}
    assert other.bytes_sent > 12e6 and set(other.authorizations) == {None}


def test_redirects_to_other_schemes_are_not_followed(server: Hub, tmp_path: Path) -> None:
  for target, words in (("file:///etc", "redirects to file"), (server.url, "without end")):
    server.faults.redirect_to = target
    with pytest.raises(DownloadError, match=words):
      pull(store(tmp_path / "home"))


def test_the_rate_limit_holds(server: Hub, tmp_path: Path) -> None:
  assert asyncio.run(_timed(pull, store(tmp_path / "home", bytes_per_s=12e6))) > 0.8


def test_cancelling_keeps_what_came_and_says_so(server: Hub, repository: Path, tmp_path: Path) -> None:
  server.faults.bytes_per_s = 8e6
  seen: list[DownloadProgress] = []

  async def work() -> None:
    one = store(tmp_path / "home")
    under_way = asyncio.Event()
    one.listen(seen.append)
    one.listen(lambda p: under_way.set() if p.downloaded_bytes > 3e6 else None)
    task = asyncio.create_task(one.fetch(one.find(REPO)))
    await asyncio.wait_for(under_way.wait(), 10)
    assert one.cancel(REPO) and not one.cancel("org/other")
    with pytest.raises(CancelledRequestError, match="was cancelled"):
      await task
    await one.close()

  asyncio.run(work())
  assert seen[-1].error == "cancelled"
  server.faults.bytes_per_s = None
  before = server.sent["model.safetensors"]
  assert same(pull(store(tmp_path / "home")), repository)
  assert server.sent["model.safetensors"] - before < 10e6


def test_a_caller_that_leaves_does_not_end_the_download_of_others(
    server: Hub, repository: Path, tmp_path: Path
) -> None:
  server.faults.bytes_per_s = 20e6

  async def work() -> None:
    one = store(tmp_path / "home")
    first = asyncio.create_task(one.fetch(one.find(REPO)))
    second = asyncio.create_task(one.fetch(one.find(REPO)))
    await asyncio.sleep(0.2)
    first.cancel()
    assert same(await second, repository)
    await one.close()

  asyncio.run(work())
  assert server.bytes_sent == sum(file.stat().st_size for file in repository.iterdir())


def test_deleting_frees_the_disk_and_leaves_the_users_own_alone(server: Hub, repository: Path, tmp_path: Path) -> None:
  one = store(tmp_path / "home")
  folder = pull(one)
  assert asyncio.run(one.delete(REPO)).n_bytes > 12e6 and not folder.exists()
  own = ModelStore(tmp_path / "home", model_dirs=[repository.parent])
  with pytest.raises(NotDoneError, match="a folder of your own"):
    asyncio.run(own.delete(repository.name))
  assert (repository / "model.safetensors").is_file()


def test_the_librarys_cache_is_read_before_the_hub(server: Hub, repository: Path, tmp_path: Path) -> None:
  """Whole there: used in place, without a request. In part there: what it has is copied."""
  from test.support.hub import COMMIT, sha256_of
  cache = tmp_path / "hf-cache" / "models--org--big"
  snapshot = cache / "snapshots" / COMMIT
  (cache / "blobs").mkdir(parents=True)
  (cache / "refs").mkdir()
  snapshot.mkdir(parents=True)
  (cache / "refs" / "main").write_text(COMMIT)
  weights = repository / "model.safetensors"
  shutil.copy(weights, cache / "blobs" / sha256_of(weights))
  one = store(tmp_path / "home")
  folder = pull(one)
  assert same(folder, repository) and server.sent["model.safetensors"] == 0
  asyncio.run(one.delete(REPO))

  (snapshot / "model.safetensors").symlink_to(cache / "blobs" / sha256_of(weights))
  for name in ("config.json", ):
    shutil.copy(repository / name, snapshot / name)
  (snapshot / "tokenizer.json").write_text("{}")
  server.forget()
  assert pull(one) == snapshot and server.requests == []
  assert one.find(REPO).path == snapshot
  with pytest.raises(NotDoneError, match="hf cache rm"):
    asyncio.run(one.delete(REPO))


def test_offline_asks_nobody(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  from huggingface_hub import constants
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
    pull(store(tmp_path / "home"))
  assert server.requests == []


def test_a_neighbour_that_lies_costs_no_more_than_time(server: Hub, repository: Path, tmp_path: Path) -> None:
  async def work() -> None:
    one = store(tmp_path / "home")
    await one.head(one.find(REPO))
    holding = one.holding(REPO)
    assert holding is not None
    one.ask(DeadEnd(holding.manifest))
    assert same(await one.fetch(one.find(REPO)), repository)
    await one.close()

  asyncio.run(work())
