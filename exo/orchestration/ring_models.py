"""The models on the disks of a ring's nodes: asking the others, and telling them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

from exo.download.model_store import ModelEntry, ModelStore
from exo.errors import ExoError, ModelNotFoundError, in_words
from exo.log import log
from exo.networking.messages import Message
from exo.networking.model_messages import ListModels, ModelsListed
from exo.orchestration.held_model import HeldModel, from_json, held_model, to_json
from exo.orchestration.model_profiles import ModelProfiles
from exo.orchestration.plan_start import Call
from exo.tasks import TaskOwner

_BELIEVED_S = 2.0
_PATIENCE_S = 0.3  # with nodes that are slow: what they said before counts until they answer
_ASK_S, _SOON_S = 5.0, 1.0


class RingModels:
  """What others hold is asked again when somebody wants to know, every few seconds at most."""
  def __init__(
      self, store: ModelStore, profiles: ModelProfiles, peers: Callable[[], Iterable[str]], call: Call, tasks: TaskOwner
  ) -> None:
    self._store, self._profiles, self._peers, self._call, self._tasks = store, profiles, peers, call, tasks
    self._told: dict[str, tuple[float, tuple[HeldModel, ...]]] = {}  # by node, when it said so
    self._asking: dict[str, asyncio.Task[None]] = {}
    self._looking = asyncio.Lock()
    self._answered: tuple[float, ModelsListed] = (float("-inf"), ModelsListed())

  def peer_left(self, node_id: str) -> None:
    self._told.pop(node_id, None)

  async def held(self) -> Mapping[str, Mapping[str, HeldModel]]:
    """By model, then by node: what other nodes hold, as far as they have said so."""
    peers, now = list(self._peers()), time.monotonic()
    waited = []
    for node_id in peers:
      begins = now - self._told.get(node_id, (float("-inf"), ()))[0] > _BELIEVED_S and node_id not in self._asking
      if begins:
        self._asking[node_id] = self._tasks.spawn(self._ask(node_id), f"ask {node_id} for its models")
      if node_id in self._asking and (begins or node_id not in self._told):  # a node that hangs is waited for once
        waited.append(self._asking[node_id])
    if waited:
      await asyncio.wait(waited, timeout=_PATIENCE_S)
    found: dict[str, dict[str, HeldModel]] = {}
    for node_id in peers:
      for model in self._told.get(node_id, (0.0, ()))[1]:
        found.setdefault(model.model_id, {})[node_id] = model
    return found

  async def _ask(self, node_id: str) -> None:
    try:
      answer = await self._call(node_id, ListModels(), _ASK_S)
      if isinstance(answer, ModelsListed):
        models = await asyncio.to_thread(from_json, answer.models_json)
        if node_id in self._peers():
          self._told[node_id] = time.monotonic(), models
    except ExoError as error:
      log(2, "%s does not say which models it has: %s", node_id, error)
    finally:
      self._asking.pop(node_id, None)

  async def of(self, model_id: str) -> Mapping[str, HeldModel]:
    """By node, what others hold of one model. Nodes that do not say so soon count as holding nothing."""
    async def ask(node_id: str) -> tuple[str, tuple[HeldModel, ...]]:
      answer = await self._call(node_id, ListModels(model_id), _SOON_S)
      models = from_json(answer.models_json) if isinstance(answer, ModelsListed) else ()
      return node_id, tuple(model for model in models if model.model_id == model_id)

    found = {}
    for told in await asyncio.gather(*map(ask, self._peers()), return_exceptions=True):
      if isinstance(told, ExoError):
        log(2, "a node does not say what it has of %s: %s", model_id, told)
      elif isinstance(told, BaseException):
        raise told
      elif told[1]:
        found[told[0]] = told[1][0]
    return found

  async def of_here(self, model_id: str) -> HeldModel | None:
    """What this node holds of a model."""
    return next(iter(await asyncio.to_thread(self._held_here, model_id)), None)

  async def answer(self, model_id: str = "") -> Message:
    """What this node holds, or what of one model; who asks while it looks hears the same."""
    if model_id:
      return ModelsListed(await asyncio.to_thread(self._of, model_id))
    async with self._looking:
      if time.monotonic() - self._answered[0] > _BELIEVED_S:
        listed = ModelsListed(await asyncio.to_thread(self._here))
        self._answered = time.monotonic(), listed
      return self._answered[1]

  def _of(self, model_id: str) -> str:
    return to_json(self._held_here(model_id))

  def _held_here(self, model_id: str) -> list[HeldModel]:
    try:
      return self._held([self._store.find(model_id)])
    except ModelNotFoundError:
      return []

  def _here(self) -> str:
    return to_json(self._held(self._store.listed()))

  def _held(self, entries: Iterable[ModelEntry]) -> list[HeldModel]:
    models = []
    for entry in entries:
      if entry.stamp:
        try:
          models.append(held_model(self._store, entry, self._profiles.look(entry)))
        except (ExoError, OSError) as error:
          log(1, "%s: %s", entry.id, in_words(error))
    return [model for model in models if model is not None]
