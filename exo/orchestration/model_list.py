"""The models that a node's ring knows, with what there is to say of each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from exo.download.model_names import neighbour_card
from exo.download.model_store import DUMMY_MODEL, ModelEntry
from exo.errors import ModelNotFoundError
from exo.orchestration.listed_model import ListedModel, ModelJudge
from exo.orchestration.node import Node
from exo.orchestration.ring_view import ring_view


async def judge_of(node: Node) -> ModelJudge:
  """With the ring as it is now."""
  others = await node.ring_models.held()
  chains = {
      chain.model_id: tuple(dict.fromkeys(stage.node_id for stage in chain.stages))
      for chain in ring_view(node).chains
  }
  contexts = {room.model_id: room.max_context for _, room in reversed(node.rooms)}  # own ones last
  return ModelJudge(
      node.profiles, node.node_id, node.planner.workers(node.hello), node.planner.place, node.planner.wanted, chains,
      contexts, others, node.planner.refused.told(), node.sense.warnings()
  )


async def list_models(node: Node, *, everything: bool) -> list[ListedModel]:
  """Every model that can be asked for by name, or those that can be answered now."""
  judge = await judge_of(node)
  return await asyncio.to_thread(_list, judge, node.config.default_model, everything)


async def listed_model(node: Node, entry: ModelEntry) -> ListedModel:
  """One of them."""
  judge = await judge_of(node)
  return await asyncio.to_thread(judge.listed, entry)


def _list(judge: ModelJudge, default: str, everything: bool) -> list[ListedModel]:
  entries = {entry.id: entry for entry in _named(judge, default)}
  if not everything:
    known = judge.loaded.keys() | judge.others.keys()
    entries = {name: entry for name, entry in entries.items() if entry.path is not None or name in known}
  listed = map(judge.listed, entries.values())
  return [model for model in listed if everything or model.is_ready]


def _named(judge: ModelJudge, default: str) -> Iterator[ModelEntry]:
  store = judge.profiles.store
  if default == DUMMY_MODEL:
    yield store.find(DUMMY_MODEL)
  yield from store.listed()
  for name in judge.others:
    try:
      yield store.find(name)
    except ModelNotFoundError:
      yield store.entry(neighbour_card(name))
