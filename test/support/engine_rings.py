"""Rings inside one process, without sockets, on real engines."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np

from exo.config import Config
from exo.inference.offer import EngineOffer
from exo.inference.sampling import SamplingParams
from exo.networking.local.local_mesh import LocalNetwork
from exo.networking.peer_messages import WorkerOffer
from exo.orchestration.generation import GenerationSpec
from exo.orchestration.node import Node
from test.support.local_rings import make_node

MEMORY_MB = 2000


@asynccontextmanager
async def engine_ring(home: Path, shelf: Path, *engines: Sequence[EngineOffer]) -> AsyncIterator[list[Node]]:
  """Nodes n0, n1, … with these engines each, and the models that lie in `shelf`."""
  async with ring_of(*((home, shelf, each) for each in engines)) as nodes:
    yield nodes


@asynccontextmanager
async def ring_of(*members: tuple[Path, Path | None, Sequence[EngineOffer]]) -> AsyncIterator[list[Node]]:
  """Nodes n0, n1, …, each with a home, what lies in its shelf, and engines."""
  network, nodes = LocalNetwork(), list[Node]()
  config = Config(chatgpt_api_response_timeout=60, kv_type="f32")  # tiny models are far off with less
  for i, (home, shelf, engines) in enumerate(members):
    offers = (WorkerOffer("cpu", tuple(engines), MEMORY_MB), )
    dirs = [] if shelf is None else [shelf]
    nodes.append(make_node(home, network, f"n{i}", MEMORY_MB, dirs, offers, config))
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
