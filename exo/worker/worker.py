"""One device of a node: its thread, its engines, what is loaded there, and whether it still computes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exo.errors import in_words
from exo.inference.engine import LoadOptions, StageMemory, StageModel
from exo.inference.offer import EngineOffer, EngineSpeed
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import Checkpoint
from exo.log import log
from exo.system_figures import processors
from exo.topology.loaded_for import WHAT_FITS, LoadedFor
from exo.worker.device_thread import DeviceThread
from exo.worker.engines import WorkerEngines
from exo.worker.health import WorkerHealth
from exo.worker.proof import prove
from exo.worker.shard_loader import LoadedShard, ShardLoader


@dataclass(frozen=True, slots=True)
class WorkerOptions:
  """How a worker loads what it loads; see `LoadOptions`. `kv_memory_bytes` bounds each cache."""
  kv_memory_bytes: int | None = None
  quantize: str | None = None
  kv_type: str | None = None
  weights: str | None = None
  made_files: Path | None = None
  library_debug: int = 0


@dataclass(slots=True)
class Resident:
  """Its caches may always hold `least_tokens`, and `lease_tokens` for now, whether anything was written to them or not."""
  shard: LoadedShard
  least_tokens: int
  lease_tokens: int

  @property
  def memory(self) -> StageMemory:
    return self.shard.model.memory

  @property
  def own_bytes(self) -> int:
    return self.memory.weight_bytes + self.memory.working_bytes + self.shard.overhead

  @property
  def least_bytes(self) -> int:
    return self.own_bytes + self.least_tokens * self.memory.kv_bytes_per_token

  @property
  def bytes(self) -> int:
    return self.own_bytes + self.lease_tokens * self.memory.kv_bytes_per_token


class Worker:
  """`name` is short and the only such one on its node, `label` what people call it among all workers of a ring (`names_of`).

  `offered_bytes` is the memory that it gives to weights and caches.
  """
  def __init__(
      self, name: str, label: str, offers: Sequence[EngineOffer], offered_bytes: int, options: WorkerOptions
  ) -> None:
    self.name, self.label, self.offered_bytes, self.options = name, label, offered_bytes, options
    self.thread = DeviceThread()
    self.engines = WorkerEngines(offers, offered_bytes)
    self.loader = ShardLoader(self.thread, self.engines)
    self.health = WorkerHealth(label, self._prove, self._renew, lambda: dict(self.loader.loading))
    self._threads = processors()
    self._set_aside = self._claimed = 0
    self._models: dict[StageModel, Resident] = {}

  @property
  def loaded_bytes(self) -> int:
    """Of what is loaded, caches aside."""
    return sum(resident.own_bytes for resident in self._models.values())

  @property
  def room(self) -> int:
    """Bytes of the offer that would be there if the caches of what is loaded held no more than they always may."""
    return self.offered_bytes - sum(resident.least_bytes for resident in self._models.values())

  @property
  def free(self) -> int:
    """Bytes of the offer that nobody may take as things are."""
    return self.offered_bytes - sum(resident.bytes for resident in self._models.values()) - self._set_aside

  @property
  def spare(self) -> int:
    """Bytes of it that caches of what is loaded may have: whoever waits to be loaded goes before them."""
    return self.free - self._claimed

  @contextmanager
  def claiming(self) -> Iterator[Callable[[int], None]]:
    """For a model that waits for room here, if it says how much: what becomes free is kept for it."""
    claimed = 0

    def claim(n_bytes: int) -> None:
      nonlocal claimed
      self._claimed += n_bytes - claimed
      claimed = n_bytes

    try:
      yield claim
    finally:
      claim(0)

  def all_of(self, model: StageModel) -> int:
    """Bytes of the offer that are free once this model is not there."""
    resident = self._models.get(model)
    return 0 if resident is None else resident.bytes

  def most_lease(self, model: StageModel, taken_bytes: int) -> int:
    """How many tokens the caches of a model could hold if others took so many bytes."""
    resident = self._models.get(model)
    if resident is None:
      return 0
    left = max(0, self.offered_bytes - taken_bytes - resident.own_bytes)
    return max(resident.least_tokens, min(resident.memory.max_kv_tokens, left // resident.memory.kv_bytes_per_token))

  def lease(self, model: StageModel) -> int:
    """How many tokens the caches of a model may hold now."""
    resident = self._models.get(model)
    return model.memory.max_kv_tokens if resident is None else resident.lease_tokens

  def shrink_lease(self, model: StageModel, tokens: int) -> None:
    """From now on its caches hold no more than so many tokens; what they always may stays theirs."""
    if (resident := self._models.get(model)) is not None:
      resident.lease_tokens = max(resident.least_tokens, min(tokens, resident.lease_tokens))

  def grow_lease(self, model: StageModel, tokens: int) -> int:
    """Let its caches hold so many tokens, or as many as there is free memory for. Returns how many they may hold now."""
    if (resident := self._models.get(model)) is None:
      return 0
    memory = resident.memory
    more = max(0, min(tokens, memory.max_kv_tokens) - resident.lease_tokens)
    resident.lease_tokens += min(more, max(0, self.spare) // memory.kv_bytes_per_token)
    return resident.lease_tokens

  def least_lease(self, model: StageModel) -> int:
    """How many tokens the caches of a model may always hold."""
    resident = self._models.get(model)
    return 0 if resident is None else resident.least_tokens

  def taken_by(self, model: StageModel) -> int:
    """Bytes of the offer that are not there for others while this model is loaded."""
    resident = self._models.get(model)
    return model.memory.weight_bytes if resident is None else resident.least_bytes

  def shard_of(self, model: StageModel) -> LoadedShard | None:
    """What was planned and measured of a loaded model; None for one that is not loaded here any more."""
    resident = self._models.get(model)
    return None if resident is None else resident.shard

  async def load(self, shard: Shard, checkpoint: Checkpoint, wanted: LoadedFor = WHAT_FITS) -> StageModel:
    """For as long and as many sequences as there would be room for if the others' caches held their least, or for what is wanted of
    that; at first its own may hold what the others leave. Raises as `ShardLoader.load` does.
    """
    model_context = checkpoint.config.max_context
    options = replace(
        self._load_options(),
        free_bytes=self.free,
        max_context=wanted.context,
        max_kv_tokens=wanted.max_kv_tokens(model_context)
    )
    if wanted.parallel is not None:
      options = replace(options, max_sequences=wanted.parallel)
    needed = self.loader.needed_bytes(shard, checkpoint, wanted)
    self._set_aside += needed  # before anything is awaited: whoever has seen to it that this is free loads at once
    try:
      loaded = await self.loader.load(shard, checkpoint, options, wanted)
    finally:
      self._set_aside -= needed
    memory = loaded.model.memory
    least = min(wanted.kv_tokens(model_context), memory.max_kv_tokens)
    if memory.kv_at_once:
      least = memory.max_kv_tokens
    self._models[loaded.model] = Resident(loaded, least, least)
    self.grow_lease(loaded.model, memory.max_kv_tokens)
    return loaded.model

  def _load_options(self) -> LoadOptions:
    given = self.options
    return LoadOptions(
        self.room,
        self._threads,
        given.kv_memory_bytes,
        quantize=given.quantize,
        kv_type=given.kv_type,
        weights=given.weights,
        made_files=given.made_files,
        library_debug=given.library_debug,
        device=self.name
    )

  async def learn(self, speeds: Mapping[str, EngineSpeed]) -> None:
    """As `WorkerEngines.learn`; by the thread that else decides about engines."""
    await self.thread.run(self.engines.learn, speeds)

  def unload(self, model: StageModel) -> Coroutine[Any, Any, None]:
    """Give a model's memory back, after what was submitted before. An engine that cannot is not the affair of who needs the
    room next: that counts as given back at once, since nothing can be loaded before."""
    self._models.pop(model, None)
    return self._close_model(model)

  async def _close_model(self, model: StageModel) -> None:
    try:
      await self.thread.run(model.close)
    except Exception as error:  # noqa: BLE001 - of an engine in an unknown state
      log(0, "%s was not closed as it should: %s", model.shard, in_words(error))

  async def close(self) -> None:
    """End the thread after what was submitted."""
    await self.health.close()
    await asyncio.to_thread(self.thread.close)

  async def _prove(self) -> None:
    """Compute something that needs nobody's model. Raises what an engine raises."""
    def work() -> None:
      for name in self.engines.in_use:
        self._prove_engine(name)

    await self.thread.run(work)

  async def _renew(self) -> None:
    """From now on new instances of the engines, proved. One that fails is done without where there is another."""
    def work() -> None:
      names, proved = list(self.engines.renew()), 0
      while names or not proved:
        name = names.pop(0) if names else self.engines.first.name
        try:
          self._prove_engine(name)
          proved += 1
        except BaseException as error:  # as of `prove`, it is raised again where there is no other engine
          if not self.engines.give_up(name, in_words(error)):
            raise

    await self.thread.run(work)

  def _prove_engine(self, name: str) -> None:
    prove(self.engines.instance(name), self._load_options())
