"""Whole rings inside one process, without sockets, on the dummy engine where nothing else is said."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from exo.config import Config
from exo.download.model_store import ModelStore
from exo.inference.sampling import SamplingParams
from exo.networking.discovery import NoDiscovery
from exo.networking.local.local_mesh import LocalMesh, LocalNetwork
from exo.networking.peer_messages import Hello, WorkerOffer
from exo.orchestration.generation import GenerationSpec
from exo.orchestration.model_catalog import ModelCatalog
from exo.orchestration.node import Node
from exo.orchestration.stage_runner import StageRunner
from exo.topology.device_capabilities import DeviceCapabilities
from exo.topology.placements import load_strategy
from exo.worker.worker import WorkerOptions
from test.support.workers import dummy_offers, make_workers

CONFIG = Config(default_model="dummy", default_temp=0.0, chatgpt_api_response_timeout=20)


def make_node(
    tmp_path: Path,
    network: LocalNetwork,
    node_id: str,
    memory: int,
    model_dirs: Sequence[Path] = (),
    offers: Sequence[WorkerOffer] = (),
    config: Config = CONFIG
) -> Node:
  """With a worker for each of `offers`, one of the dummy engine without them."""
  offers, config = tuple(offers) or dummy_offers(memory), replace(config, exo_home=tmp_path)
  hello = Hello(node_id, 1, 50000, DeviceCapabilities(memory=memory), offers, "1")
  return Node(
      config, hello, LocalMesh(hello, network), NoDiscovery(),
      ModelCatalog(ModelStore(tmp_path, model_dirs), config.context),
      make_workers(node_id, offers, WorkerOptions(kv_type=config.kv_type)), load_strategy("memory")
  )


@asynccontextmanager
async def local_ring(
    tmp_path: Path,
    *memories: int,
    model_dirs: Sequence[Path] = (),
    devices: Sequence[str] = ("cpu", ),
    configs: Sequence[Config] = ()
) -> AsyncIterator[tuple[list[Node], LocalNetwork]]:
  """Nodes n0, n1, … that offer these MB, divided evenly among a worker for each of `devices`; `configs` are of the first of
  them."""
  network, nodes = LocalNetwork(), []
  for i, memory in enumerate(memories):
    node = make_node(
        tmp_path, network, f"n{i}", memory, model_dirs, dummy_offers(memory, devices),
        configs[i] if i < len(configs) else CONFIG
    )
    await node.start()
    nodes.append(node)
  try:
    yield nodes, network
  finally:
    for node in nodes:
      await node.stop()


def spec(prompt: str, max_tokens: int = 20, n: int = 1, **sampling) -> GenerationSpec:
  return GenerationSpec(
      uuid.uuid4().hex, tuple(prompt.encode()), max_tokens, frozenset({256}), SamplingParams(**sampling), n
  )


async def text_of(node: Node, wanted: GenerationSpec, name: str = "dummy") -> list[str]:
  model = await node.model(name)
  out = [b""] * wanted.n
  async with node.generation(wanted, model) as generation:
    async for delivery in generation:
      out[delivery.choice] += bytes(token.token_id for token in delivery.tokens)
  return [choice.decode() for choice in out]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
  asyncio.run(asyncio.wait_for(scenario(), 60))  # type: ignore[arg-type]


async def settled(nodes: list[Node]) -> None:
  """Everything that ended requests held is free again, on every stage."""
  for _ in range(200):
    if all(
        opened.idle and (opened.driver is None or opened.driver.idle) for node in nodes
        for opened in node.plans._open.values()
    ):
      break
    await asyncio.sleep(0.01)
  for node in nodes:
    assert len(node.desk) == 0
    for opened in node.plans._open.values():
      assert opened.idle
      for stage in opened.stages.values():
        assert set(stage.runner.model._cache) == stage.runner.kept  # type: ignore[attr-defined]
      if opened.driver is not None:
        assert opened.driver.scheduler.counts.reserved_kv_tokens == 0
        assert opened.driver.scheduler.counts.kept == len(opened.stages[0].runner.kept)


def runner_of(opened: Any) -> StageRunner:
  """The one stage of a plan that a node has."""
  (stage, ) = opened.stages.values()
  runner: StageRunner = stage.runner
  return runner
