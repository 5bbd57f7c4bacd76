"""Line 10, requirement 14: files that are not what they are said to be."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from exo.download.manifest import Manifest, RepoFile
from exo.download.model_fetcher import ModelFetcher
from exo.download.model_library import read_manifest, wheel_manifest
from exo.download.model_state import ModelState, model_state
from exo.download.model_store import ModelStore
from exo.download.neighbours import Held
from exo.download.pinned_blocks import pinned_blocks, shortened
from exo.download.sparse_file import held_spans
from exo.errors import DownloadError
from exo.inference.shard import Shard
from exo.inference.weights.block_map import block_bytes, digests_of
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.inference.weights.parts import file_spans, shard_tensors
from exo.models import CARDS
from exo.orchestration.model_catalog import ModelCatalog
from test.support.hub import Hub, hub, sha256_of
from test.support.models import put_other_weights
from test.support.nodes import ROOT, NodeProcess, free_port, wait_until
from test.support.stores import Ring, held_by, hub_here, store, write_big

REPO = "org/big"
TINY = ROOT / "test" / "data" / "goldens" / "llama"
REMEMBERED_S = 2.1  # as long as a node remembers what of a model it found for others


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return write_big(tmp_path_factory.mktemp("repo"), 12)


@pytest.fixture(scope="module")
def false(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """The same with other weights and another configuration, of the same sizes."""
  folder = tmp_path_factory.mktemp("false")
  config = (repository / "config.json").read_text()
  (folder / "config.json").write_text(config.replace('"num_attention_heads": 4', '"num_attention_heads": 8'))
  data = bytearray((repository / "model.safetensors").read_bytes())
  for at in range(len(data) // 2, len(data), 1000):
    data[at] ^= 1
  (folder / "model.safetensors").write_bytes(data)
  return folder


def same(folder: Path, repository: Path) -> bool:
  return all((folder / file.name).read_bytes() == file.read_bytes() for file in repository.iterdir())


def state(one: ModelStore, name: str = REPO) -> ModelState:
  return model_state(one, one.find(name))


async def bring_layers(one: ModelStore, first: int, last: int, name: str = REPO) -> dict[str, list[tuple[int, int]]]:
  """As a node does that gets a stage; the spans by file."""
  entry = await one.find_anywhere(name)
  checkpoint = open_checkpoint(await one.head(entry))
  found = file_spans(checkpoint, shard_tensors(checkpoint, Shard(name, first, last, checkpoint.config.n_layers)))
  checkpoint.close()
  spans = {path.name: spans for path, spans in found.items()}
  await one.bring(entry, spans)
  return spans


def true_there(folder: Path, repository: Path, spans: dict[str, list[tuple[int, int]]]) -> bool:
  return all((folder / name).read_bytes()[start:end] == (repository / name).read_bytes()[start:end]
             for name, parts in spans.items() for start, end in parts)


async def closed(nodes: Ring) -> None:
  for one in nodes.stores.values():
    await one.close()


def refused(nodes: Ring, of: str) -> set[str]:
  return {name for name in nodes.stores if nodes.stores[of]._fetcher.neighbours.refuses(name)}


def play(work: Callable[[Hub], Awaitable[None]], tmp_path: Path, repository: Path) -> None:
  with hub_here({REPO: repository}, tmp_path) as server:
    asyncio.run(work(server))  # type: ignore[arg-type]


@pytest.mark.parametrize("listed", ["as the hub does", "by its own bytes"])
def test_line_10_a_whole_file_has_the_hubs_hash_whoever_sent_it(
    repository: Path, false: Path, tmp_path: Path, listed: str
) -> None:
  nodes = Ring({name: store(tmp_path / name) for name in "ab"})
  held_by(tmp_path / "a", REPO, false, repository if listed == "as the hub does" else None)

  async def work(server: Hub) -> None:
    assert same(await nodes.stores["b"].fetch(nodes.stores["b"].find(REPO)), repository)
    assert state(nodes.stores["b"]).verified
    assert refused(nodes,
                   "b") == ({"a"} if listed == "as the hub does" else set())  # a file of another hash is another file
    await closed(nodes)

  play(work, tmp_path, repository)


def test_line_10_parts_are_compared_with_the_hubs(repository: Path, false: Path, tmp_path: Path) -> None:
  """Nothing of the liar's stays, it is named and asked no more; what the honest one gave stays."""
  nodes = Ring({name: store(tmp_path / name) for name in "abc"})
  held_by(tmp_path / "a", REPO, false, repository)
  held_by(tmp_path / "b", REPO, repository)

  async def work(server: Hub) -> None:
    nodes.down.add("b")
    spans = await bring_layers(nodes.stores["c"], 3, 3)
    assert true_there(tmp_path / "c" / "org--big", repository, spans) and refused(nodes, "c") == {"a"}
    assert state(nodes.stores["c"]).verified and nodes.stores["c"].unverified == {}
    nodes.down.clear()
    nodes.reads.clear()
    server.forget()
    spans = await bring_layers(nodes.stores["c"], 2, 2)
    assert true_there(tmp_path / "c" / "org--big", repository, spans) and {node for node, *_ in nodes.reads} == {"b"}
    assert 0 < server.bytes_sent <= 16 * 2048  # the samples alone
    assert state(nodes.stores["c"]).verified
    await closed(nodes)

  play(work, tmp_path, repository)


def test_line_10_of_two_that_contradict_each_other_the_false_one_is_found(
    repository: Path, false: Path, tmp_path: Path
) -> None:
  nodes = Ring({name: store(tmp_path / name) for name in "abc"})
  shutil.copy(repository / "config.json", held_by(tmp_path / "a", REPO, false, repository))
  held_by(tmp_path / "b", REPO, repository)

  async def work(server: Hub) -> None:
    assert same(await nodes.stores["c"].fetch(nodes.stores["c"].find(REPO)), repository)
    assert {node for node, name, *_ in nodes.reads if name == "model.safetensors"} == {"a", "b"}
    assert refused(nodes, "c") == {"a"}
    assert state(nodes.stores["c"]).verified
    await closed(nodes)

  play(work, tmp_path, repository)


@pytest.mark.parametrize("honest", [True, False])
def test_line_10_what_could_not_be_checked_is_shown_remembered_and_checked_later(
    repository: Path, false: Path, tmp_path: Path, honest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
  from huggingface_hub import constants
  files = repository if honest else false
  nodes = Ring({name: store(tmp_path / name) for name in "ab"})
  held_by(tmp_path / "a", REPO, files, repository)
  # it gives the right list: that it is, nobody can tell as long as the hub cannot be asked
  folder = tmp_path / "b" / "org--big"
  if not honest:  # a wrong configuration would be found by its hash in that list
    shutil.copy(repository / "config.json", tmp_path / "a" / "org--big" / "config.json")

  async def first(server: Hub) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    spans = await bring_layers(nodes.stores["b"], 3, 3)
    assert true_there(folder, files, spans)  # used, though
    assert state(nodes.stores["b"]).verified is False and nodes.stores["b"].unverified == {REPO: ("a", )}
    assert server.requests == []
    await closed(nodes)

  async def later(server: Hub) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    one, dropped = store(tmp_path / "b"), []
    one.on_false(dropped.append)
    await one.remember_doubts()
    assert one.unverified == {REPO: ("a", )} and state(one).verified is False
    spans = await bring_layers(one, 3, 3)  # is here: used at once, and compared meanwhile
    await asyncio.gather(*one._checks.values())
    assert one.unverified == {} and dropped == ([] if honest else [REPO])
    spans = await bring_layers(one, 3, 3)
    assert true_there(folder, repository, spans) and state(one).verified
    await one.close()

  with hub_here({REPO: repository}, tmp_path) as server:
    asyncio.run(first(server))
    asyncio.run(later(server))


def test_line_10_a_list_that_a_neighbour_made_up_is_dropped_when_the_hub_is_back(
    repository: Path, false: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Whole files with hashes that agree with the liar's own list: they prove nothing."""
  from huggingface_hub import constants
  nodes = Ring({name: store(tmp_path / name) for name in "ab"})
  held_by(tmp_path / "a", REPO, false)

  async def work(server: Hub) -> None:
    one = nodes.stores["b"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(await one.fetch(one.find(REPO)), false) and state(one).verified is False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert same(await one.fetch(one.find(REPO)), repository) and state(one).verified and one.unverified == {}
    assert refused(nodes, "b") == {"a"}
    await closed(nodes)

  play(work, tmp_path, repository)


@pytest.mark.parametrize("proposed", [False, True])
def test_line_10_a_neighbours_version_counts_only_if_it_lies_on_the_branch(
    repository: Path, false: Path, tmp_path: Path, proposed: bool
) -> None:
  """Anybody may propose a change to a repository, and the hub knows its commit too."""
  commit = "89" * 20
  nodes = Ring({name: store(tmp_path / name) for name in "ab"})
  held_by(tmp_path / "a", REPO, false, revision=commit)

  async def work(server: Hub) -> None:
    server.versions[REPO] = {commit: false}
    server.proposed = {commit} if proposed else set()
    assert same(await nodes.stores["b"].fetch(nodes.stores["b"].find(REPO)), repository if proposed else false)
    assert state(nodes.stores["b"]).verified
    await closed(nodes)

  play(work, tmp_path, repository)


def test_line_10_lists_that_no_model_has_are_not_used(repository: Path, tmp_path: Path) -> None:
  nodes = Ring({name: store(tmp_path / name) for name in "abcde"})
  for name, extra in (("a", RepoFile("vocab.json", 2**30)), ("b", RepoFile("sub/tokenizer.json", 10)), ("c", None)):
    folder = held_by(tmp_path / name, REPO, repository)
    manifest = read_manifest(folder)
    files = (*manifest.files, extra) if extra else manifest.auxiliary
    (folder / ".exo" / "manifest.json").write_text(replace(manifest, files=files).to_json())

  async def work() -> None:
    with pytest.raises(DownloadError):
      await bring_layers(nodes.stores["d"], 0, 0)
    assert [path.name for path in (tmp_path / "d" / "org--big").iterdir() if not path.name.startswith(".")] == []
    await closed(nodes)

  with hub_here({}, tmp_path):
    asyncio.run(work())


@pytest.mark.parametrize("offline", [False, True])
def test_line_10_nonsense_of_one_neighbour_is_fetched_elsewhere(
    repository: Path, tmp_path: Path, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
  """A header that does not parse is no reason to fail as long as somebody has another one."""
  from huggingface_hub import constants
  nonsense = tmp_path / "nonsense"
  shutil.copytree(repository, nonsense)
  with (nonsense / "model.safetensors").open("r+b") as file:
    file.write(b"\xff" * 8)
  nodes = Ring({name: store(tmp_path / name) for name in "ab"} | ({"c": store(tmp_path / "c")} if offline else {}))
  held_by(tmp_path / "a", REPO, nonsense, repository)
  held_by(tmp_path / "c", REPO, repository)

  async def work(server: Hub) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    spans = await bring_layers(nodes.stores["b"], 1, 2)
    assert true_there(tmp_path / "b" / "org--big", repository, spans)
    assert state(nodes.stores["b"]).verified is not offline and (offline or refused(nodes, "b") == {"a"})
    await closed(nodes)

  play(work, tmp_path, repository)


def test_line_10_a_list_that_leaves_files_out_spoils_nothing(repository: Path, tmp_path: Path) -> None:
  nodes = Ring({name: store(tmp_path / name) for name in "ab"})
  folder = held_by(tmp_path / "a", REPO, repository)
  manifest = read_manifest(folder)
  (folder / ".exo" / "manifest.json").write_text(replace(manifest, files=manifest.weights).to_json())

  async def work(server: Hub) -> None:
    assert same(await nodes.stores["b"].fetch(nodes.stores["b"].find(REPO)), repository)
    await closed(nodes)

  play(work, tmp_path, repository)


def test_line_10_spans_that_no_node_holds_keep_nobody_from_honest_ones(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  nodes = Ring({name: store(tmp_path / name) for name in "ab"})
  held_by(tmp_path / "a", REPO, repository)
  sharing = nodes.sharing["b"]
  held = sharing.held

  async def with_a_liar(manifest: Manifest, files: Sequence[RepoFile]) -> Held:
    return {"liar": {file.name: [(1, file.size - 1)] for file in files}, **await held(manifest, files)}

  monkeypatch.setattr(sharing, "held", with_a_liar)

  async def work(server: Hub) -> None:
    assert same(await nodes.stores["b"].fetch(nodes.stores["b"].find(REPO)), repository)
    assert server.sent["model.safetensors"] <= 2048  # the header's block, to compare
    await closed(nodes)

  play(work, tmp_path, repository)


def test_line_10_what_turns_out_false_is_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """The catalog opens it anew, and knows that plans hold what is gone; a check under way holds up no load."""
  from huggingface_hub import constants
  right, false = (tmp_path / name for name in ("right", "false"))
  for folder in (right, false):
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.npy"))
  put_other_weights(false, 7)
  nodes = Ring({name: store(tmp_path / name) for name in "ab"})
  held_by(tmp_path / "a", REPO, false, right)
  one = nodes.stores["b"]
  catalog = ModelCatalog(one)

  async def work(server: Hub) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = await catalog.checkpoint(REPO)
    shard = Shard(REPO, 0, 0, before.config.n_layers)
    await catalog.fetch_shard(shard)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    vouch, may_check = ModelFetcher._vouch_for_list, asyncio.Event()

    async def later(fetcher: ModelFetcher, *of: object) -> bool:
      await may_check.wait()  # what is false is fetched anew from then on, and a load would wait for that
      return await vouch(fetcher, *of)  # type: ignore[arg-type]

    monkeypatch.setattr(ModelFetcher, "_vouch_for_list", later)
    await catalog.fetch_shard(shard)
    async with asyncio.timeout(10):
      await catalog.fetch_shard(shard)
    assert one._checks and not catalog.replaced
    may_check.set()
    await asyncio.gather(*one._checks.values())
    assert catalog.replaced == {REPO}
    await catalog.fetch_shard(shard)
    assert await catalog.checkpoint(REPO) is not before and one.unverified == {}
    await closed(nodes)

  play(work, tmp_path, right)


def test_line_10_a_local_model_of_one_node_is_unverified_on_the_others(tmp_path: Path) -> None:
  shelf = tmp_path / "shelf"
  shutil.copytree(TINY, shelf / "one")
  nodes = Ring({"a": ModelStore(tmp_path / "a", model_dirs=[shelf]), "b": store(tmp_path / "b")})

  async def work(server: Hub) -> None:
    await nodes.stores["b"].fetch(await nodes.stores["b"].find_anywhere("one"))
    assert state(nodes.stores["a"], "one").verified is None  # its user's own
    assert state(nodes.stores["b"], "one").verified is False and nodes.stores["b"].unverified == {"one": ("a", )}
    assert (await nodes.stores["b"].delete("one")).n_bytes and nodes.stores["b"].unverified == {}
    await closed(nodes)

  play(work, tmp_path, shelf)


def test_line_10_a_damaged_file_of_huggingface_hubs_cache_is_not_copied(
    repository: Path, false: Path, tmp_path: Path
) -> None:
  blobs = tmp_path / "hf-cache" / "models--org--big" / "blobs"
  blobs.mkdir(parents=True)
  shutil.copy(false / "model.safetensors", blobs / sha256_of(repository / "model.safetensors"))

  async def work(server: Hub) -> None:
    one = store(tmp_path / "home")
    spans = await bring_layers(one, 3, 3)
    assert true_there(tmp_path / "home" / "org--big", repository, spans) and state(one).verified
    await one.close()

  play(work, tmp_path, repository)


# line 10: the default model, of which exo knows every block

DEFAULT = "smollm2-135m"


def test_line_10_the_pinned_blocks_are_those_of_the_pinned_file(smollm2: Checkpoint) -> None:
  file = wheel_manifest(DEFAULT, CARDS[DEFAULT].source).files[0]  # type: ignore[arg-type]
  block = block_bytes(file.size)
  assert pinned_blocks(file) == shortened(digests_of(smollm2.path.read_bytes(), block))


def test_line_10_a_false_block_of_the_default_model_is_never_taken(
    smollm2: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Without any hub: the honest neighbour gives what the liar does not, and without it there is an error, no false byte."""
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  nodes = Ring({name: store(tmp_path / name) for name in "ab"} | {"c": ModelStore(smollm2.path.parents[1])})
  folder = tmp_path / "a" / smollm2.path.parent.name
  shutil.copytree(smollm2.path.parent, folder)
  tensor = smollm2.spans("model.layers.3.mlp.up_proj.weight")[0]
  with (folder / smollm2.path.name).open("r+b") as file:
    file.seek(tensor[1] + 1000)
    file.write(b"false")

  async def work() -> None:
    nodes.down.add("c")
    with pytest.raises(DownloadError):
      await bring_layers(nodes.stores["b"], 3, 3, DEFAULT)
    assert refused(nodes, "b") == {"a"}
    here = tmp_path / "b" / smollm2.path.parent.name / smollm2.path.name
    assert true_there(here.parent, smollm2.path.parent, {here.name: held_spans(here)})
    nodes.down.clear()
    spans = await bring_layers(nodes.stores["b"], 3, 3, DEFAULT)
    assert true_there(here.parent, smollm2.path.parent, spans)
    assert state(nodes.stores["b"], DEFAULT).verified and nodes.stores["b"].unverified == {}
    await closed(nodes)

  asyncio.run(work())


def test_line_10_a_file_of_the_right_size_put_there_by_hand_must_be_the_pinned_one(
    smollm2: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  folder = tmp_path / "home" / smollm2.path.parent.name
  folder.mkdir(parents=True)
  file = folder / smollm2.path.name
  with file.open("wb") as out:
    out.truncate(smollm2.path.stat().st_size)

  async def work() -> None:
    one = store(tmp_path / "home")
    assert state(one, DEFAULT).verified is False
    with pytest.raises(DownloadError):
      await one.head(one.find(DEFAULT))
    shutil.rmtree(folder)
    folder.mkdir()
    shutil.copy(smollm2.path, file)
    assert state(one, DEFAULT).verified is False  # not looked at yet
    assert await one.fetch(one.find(DEFAULT)) == file and state(one, DEFAULT).verified
    await one.close()

  asyncio.run(work())


# line 10: real nodes


def cli(node: NodeProcess, *arguments: str) -> str:
  environment = os.environ | {"EXO_HOME": str(node.home), "HF_ENDPOINT": "http://127.0.0.1:9"}
  done = subprocess.run([sys.executable, "-m", "exo", *arguments],
                        capture_output=True,
                        text=True,
                        check=True,
                        timeout=60,
                        cwd=ROOT,
                        env=environment)
  return done.stdout


def pool(node: NodeProcess) -> dict[str, object]:
  """What the page is told of the model."""
  with urllib.request.urlopen(node.url + "/modelpool", timeout=30) as response:
    events = [json.loads(line[6:]) for line in response.read().decode().split("\n") if line.startswith("data: {")]
  found: dict[str, object] = next(event["org/tiny"] for event in events if "org/tiny" in event)
  return found


def test_line_10_a_lying_node_is_named_and_what_nobody_could_check_is_shown(tmp_path: Path) -> None:
  port = str(free_port(socket.SOCK_DGRAM))
  liar = tmp_path / "false"
  shutil.copytree(TINY, liar, ignore=shutil.ignore_patterns("*.npy"))
  put_other_weights(liar, 7)
  right = tmp_path / "right"
  shutil.copytree(TINY, right, ignore=shutil.ignore_patterns("*.npy"))
  held_by(tmp_path / "liar", "org/tiny", liar, right)

  def started(name: str, endpoint: str) -> NodeProcess:
    env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / name / "hf"), "PIP_NO_INDEX": "1"}
    return NodeProcess(
        tmp_path / name,
        "--listen-port",
        port,
        "--broadcast-port",
        port,
        "--inference-engine",
        "dummy",
        node_id=name,
        env=env
    )

  with hub({"org/tiny": right}) as server:
    nodes = [started("liar", server.url), started("checks", server.url), started("alone", "http://127.0.0.1:9")]
    try:
      for node in nodes:
        node.wait_ready()
        node.wait_peers(3)
      checks, alone = nodes[1:]
      assert checks.post("/download", {"model": "org/tiny", "wait": True})[0] == 200
      assert same(checks.home / "org--tiny", right)
      checks.wait_said("liar gave false bytes")
      assert pool(checks)["verified"]
      checks.stop()  # else it would be asked too
      wait_until(lambda: alone.peers() == {"liar", "alone"}, 15, "a ring of two")
      status, body = alone.post("/download", {"model": "org/tiny", "wait": True})
      assert status == 503, body  # the liar's bytes do not even have the hashes of its list
      shutil.rmtree(alone.home / "org--tiny")
      held_by(tmp_path / "liar", "org/tiny", liar)  # now they do
      time.sleep(REMEMBERED_S)
      status, body = alone.post("/download", {"model": "org/tiny", "wait": True})
      assert status == 200 and "is here, unverified: liar gave it" in body["message"]
      alone.wait_said("is unverified")
      assert pool(alone)["verified"] is False
      assert "yes, unverified" in cli(alone, "models") and "unverified org/tiny, from liar" in cli(alone, "status")
    finally:
      for node in nodes:
        node.stop()
