"""Rings inside one process, without sockets, on real engines."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from exo.config import Config
from exo.download.model_store import ModelStore
from exo.inference.offer import EngineOffer
from exo.inference.sampling import SamplingParams
from exo.networking.discovery import NoDiscovery
from exo.networking.local.local_mesh import LocalMesh, LocalNetwork
from exo.networking.messages import Hello, WorkerOffer
from exo.orchestration.generation import GenerationSpec
from exo.orchestration.model_catalog import ModelCatalog
from exo.orchestration.node import Node
from exo.topology.device_capabilities import DeviceCapabilities
from exo.topology.placements import load_strategy
from exo.worker.worker import Worker, WorkerOptions

MEMORY_MB = 2000


@asynccontextmanager
async def engine_ring(home: Path, shelf: Path, *engines: Sequence[EngineOffer]) -> AsyncIterator[list[Node]]:
  """Nodes n0, n1, … with these engines each, and the models that lie in `shelf`."""
  network, nodes = LocalNetwork(), []
  for i, offers in enumerate(engines):
    capabilities = DeviceCapabilities(memory=MEMORY_MB)
    hello = Hello(f"n{i}", 1, 50000, capabilities, (WorkerOffer("cpu", tuple(offers), MEMORY_MB), ), "1")
    worker = Worker("cpu", f"n{i}", offers, MEMORY_MB * 2**20, WorkerOptions())
    nodes.append(
        Node(
            Config(chatgpt_api_response_timeout=60), hello, LocalMesh(hello, network), NoDiscovery(),
            ModelCatalog(ModelStore(home, [shelf])), [worker], load_strategy("memory")
        )
    )
    await nodes[-1].start()
  try:
    yield nodes
  finally:
    for node in nodes:
      await node.stop()


async def scores(node: Node, model: str, ids: Sequence[int]) -> np.ndarray:
  """The log probabilities of all tokens but the first, given what stands before."""
  spec = GenerationSpec(uuid.uuid4().hex, tuple(ids), 1, frozenset(), SamplingParams(temperature=0), prompt_logprobs=0)
  found: list[float] = []
  async with node.generation(spec, await node.model(model)) as generation:
    async for delivery in generation:
      found += [token.logprob for token in delivery.prompt_logprobs]
  return np.array(found)
