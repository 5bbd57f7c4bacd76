"""Nodes as each other's source of models: several at once, verified, before the hub."""

from __future__ import annotations

import asyncio
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from exo.download.model_store import ModelStore
from exo.errors import DownloadError, ModelNotFoundError
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import open_checkpoint
from exo.inference.weights.parts import file_spans, shard_tensors
from test.support.hub import Hub
from test.support.stores import Ring, hub_here, store, write_big

REPO = "org/big"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return write_big(tmp_path_factory.mktemp("repo"), 12)


def same(folder: Path, repository: Path) -> bool:
  return all((folder / file.name).read_bytes() == file.read_bytes() for file in repository.iterdir())


def only_compared(server: Hub) -> bool:
  """Whether the hub was asked for its list and for the header's block, which a neighbour had given, and for no more."""
  return server.bytes_sent <= 2048 and sum("/api/models/" in request for request in server.requests) == 1


async def bring_layers(one: ModelStore, first: int, last: int, name: str = REPO) -> None:
  entry = await one.find_anywhere(name)
  checkpoint = open_checkpoint(await one.head(entry))
  spans = file_spans(checkpoint, shard_tensors(checkpoint, Shard(name, first, last, 4)))
  await one.bring(entry, {path.name: found for path, found in spans.items()})
  for layer in range(first, last + 1):
    checkpoint.tensor(f"model.layers.{layer}.mlp.up_proj.weight")
  checkpoint.close()


async def close(ring: Ring) -> None:
  for one in ring.stores.values():
    await one.close()


def test_what_the_ring_holds_is_fetched_from_nobody_else(repository: Path, tmp_path: Path) -> None:
  """Each of three holds other layers; the fourth takes the whole from all of them at once; the hub tells what is right."""
  ring = Ring({name: store(tmp_path / name) for name in "abcd"})

  async def work() -> None:
    await bring_layers(ring.stores["a"], 0, 1)
    await bring_layers(ring.stores["b"], 1, 2)
    await bring_layers(ring.stores["c"], 3, 3)
    server.forget()
    ring.reads.clear()
    folder = await ring.stores["d"].fetch(ring.stores["d"].find(REPO))
    assert same(folder, repository)
    await close(ring)

  with hub_here({REPO: repository}, tmp_path) as server:
    asyncio.run(work())
    assert only_compared(server)
  assert {node for node, *_ in ring.reads} == {"a", "b", "c"}
  taken = sorted((start, end) for _, name, start, end in ring.reads if name == "model.safetensors")
  assert all(a[1] <= b[0] for a, b in pairwise(taken))  # no byte twice
  assert sum(end - start for start, end in taken) == (repository / "model.safetensors").stat().st_size


def test_what_neighbours_lack_or_garble_comes_from_the_hub(repository: Path, tmp_path: Path) -> None:
  ring = Ring({name: store(tmp_path / name) for name in "abc"})

  async def work() -> None:
    await bring_layers(ring.stores["a"], 0, 1)
    await bring_layers(ring.stores["b"], 2, 2)
    ring.corrupt.add("b")
    server.forget()
    assert same(await ring.stores["c"].fetch(ring.stores["c"].find(REPO)), repository)
    await close(ring)

  with hub_here({REPO: repository}, tmp_path) as server:
    asyncio.run(work())
    half = (repository / "model.safetensors").stat().st_size / 2
    assert 0.9 * half < server.bytes_sent < 1.1 * half  # the layers of nobody, and those that came garbled


def test_a_neighbour_that_leaves_is_replaced_by_another_that_holds_the_same(repository: Path, tmp_path: Path) -> None:
  ring = Ring({name: store(tmp_path / name) for name in "abc"})

  async def work() -> None:
    await bring_layers(ring.stores["a"], 0, 3)
    await bring_layers(ring.stores["b"], 0, 3)
    server.forget()
    pulling = asyncio.create_task(ring.stores["c"].fetch(ring.stores["c"].find(REPO)))
    while not any(node == "a" for node, *_ in ring.reads):  # noqa: ASYNC110 - a list has no event
      await asyncio.sleep(0.001)
    ring.down.add("a")
    assert same(await pulling, repository)
    await close(ring)

  with hub_here({REPO: repository}, tmp_path) as server:
    asyncio.run(work())
    assert only_compared(server)


def test_a_folder_of_one_node_reaches_the_others_and_stays_with_them(repository: Path, tmp_path: Path) -> None:
  own = tmp_path / "own"
  own.mkdir()
  (own / "my model").symlink_to(repository)
  ring = Ring({
      "a": ModelStore(tmp_path / "a", model_dirs=[own]), "b": store(tmp_path / "b"), "c": store(tmp_path / "c")
  })

  async def work() -> None:
    await bring_layers(ring.stores["b"], 0, 1, "my model")
    ring.down.add("a")
    assert ring.stores["b"].find("my model").path is None  # only half of it is here
    with pytest.raises(DownloadError, match="lies on another node"):
      await bring_layers(ring.stores["b"], 0, 3, "my model")
    await bring_layers(ring.stores["c"], 0, 0, "my model")  # from b, which has it from a
    with pytest.raises(ModelNotFoundError):
      await ring.stores["c"].find_anywhere("their model")
    ring.down.clear()
    assert same(await ring.stores["c"].fetch(ring.stores["c"].find("my model")), repository)
    assert "my model" in {entry.id for entry in store(tmp_path / "c").listed()}
    await close(ring)

  with hub_here({}, tmp_path) as server:
    asyncio.run(work())
    assert server.requests == []
  assert sorted(path.name for path in repository.iterdir()) == ["config.json", "model.safetensors"]  # left as it was


def test_versions_of_a_model_are_not_mixed(repository: Path, tmp_path: Path) -> None:
  """A neighbour with other bytes under the same name and size is no source."""
  other = tmp_path / "other" / "big"
  shutil.copytree(repository, other)
  data = bytearray((other / "model.safetensors").read_bytes())
  data[-1] ^= 1
  (other / "model.safetensors").write_bytes(data)
  ring = Ring({"a": ModelStore(tmp_path / "a", model_dirs=[other.parent]), "b": store(tmp_path / "b")})

  async def work() -> None:
    await ring.stores["b"].head(await ring.stores["b"].find_anywhere("big"))
    os_data = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(os_data[:-1] + b"\0")  # changed on the other node meanwhile
    await asyncio.sleep(2.1)  # as long as a node remembers what it found
    with pytest.raises(DownloadError, match="no node of the ring"):
      await bring_layers(ring.stores["b"], 0, 3, "big")
    await close(ring)

  with hub_here({}, tmp_path):
    asyncio.run(work())
