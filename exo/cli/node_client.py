"""A client for commands: of a node that runs on this machine, else of one started for the purpose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from exo.cli.client import ApiClient, answers
from exo.config import Config
from exo.runtime_file import running_nodes

_PEERS_S = 1.0  # a node of this machine or network answers a first beacon well within this


@asynccontextmanager
async def node_client(config: Config, model: str | None) -> AsyncIterator[ApiClient]:
  """A running node of this machine that knows the model, else a new one that leaves with us."""
  for info in running_nodes(config.state_dir):
    if await answers(info):
      async with ApiClient(info) as api:
        if not config.models or model in {entry["id"] for entry in (await api.get("/v1/models?all=true"))["data"]}:
          yield api
          return
  from exo.cli.assemble import running_node
  async with running_node(config, lambda: None) as running:
    peers = max(1, config.wait_for_peers)
    await running.node.wait_for_peers(peers, config.discovery_timeout if config.wait_for_peers else _PEERS_S)
    async with ApiClient(running.info) as api:
      yield api
