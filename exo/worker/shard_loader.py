"""Brings shards of models into a worker's engine, from files that somebody else has opened and fetched."""

from __future__ import annotations

import math
import time
import traceback
from dataclasses import dataclass, replace

from exo.errors import EngineUnavailableError, ModelTooLargeError, OutOfMemoryError, in_words
from exo.inference.engine import LoadOptions, StageModel
from exo.inference.offer import EngineOffer
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import Checkpoint
from exo.log import log
from exo.process_memory import PeakWatch, give_back, held_bytes
from exo.topology.loaded_for import WHAT_FITS, LoadedFor
from exo.topology.weight_memory import StageBytes
from exo.worker.device_thread import DeviceThread
from exo.worker.engines import WorkerEngines
from exo.worker.heap import tidy

_MB = 2**20


@dataclass(frozen=True, slots=True)
class LoadedShard:
  """`engine` has loaded it; `planned` is what the engine says beforehand of such a stage, `measured` by how much the process and its children grew, at most
  while it was loaded and when it was; `overhead` are bytes of it that are neither weights nor caches.
  """
  model: StageModel
  engine: str
  planned: StageBytes
  measured: StageBytes
  overhead: int


class ShardLoader:
  """Knows checkpoints and no files: whoever calls `load` has seen to it that the shard's tensors are there."""
  def __init__(self, thread: DeviceThread, engines: WorkerEngines) -> None:
    self._thread, self._engines = thread, engines
    self.loading: dict[str, float] = {}  # model: how far its shard is, 0 to 1
    self.loading_bytes: dict[str, int] = {}  # and what there is to read of it

  def needed_bytes(self, shard: Shard, checkpoint: Checkpoint, wanted: LoadedFor = WHAT_FITS) -> int:
    """The most that the shard ever takes of memory, with the KV cache that is wanted."""
    return _planned(self._able(shard, checkpoint)[0], shard, checkpoint, wanted).most

  def _able(self, shard: Shard, checkpoint: Checkpoint) -> list[EngineOffer]:
    return self._engines.able(checkpoint.facts, shard, checkpoint.size, checkpoint.fingerprint)

  async def load(
      self, shard: Shard, checkpoint: Checkpoint, options: LoadOptions, wanted: LoadedFor = WHAT_FITS
  ) -> LoadedShard:
    """With the first of the worker's engines that can run it; where that fails for reasons of its own, with the next.

    Raises `ModelFilesError`, `UnsupportedModelError`, `EngineError`: what the first of them raised.
    """
    def work() -> LoadedShard:
      failures: list[Exception] = []
      for offer in self._able(shard, checkpoint):
        try:
          return load_with(offer)
        except (OutOfMemoryError, ModelTooLargeError, MemoryError):
          raise
        except EngineUnavailableError as error:
          self._engines.give_up(offer.name, error.message)
          failures.append(error)
        except Exception as error:  # noqa: BLE001 - whatever one library does at this model, another may not
          log(1, "%s could not be loaded with %s: %s", shard, offer.name, in_words(error))
          failures.append(error)
          _let_go(error)
      raise failures[0]

    def load_with(offer: EngineOffer) -> LoadedShard:
      overhead = offer.weights.overhead(checkpoint.size)
      planned = _planned(offer, shard, checkpoint, wanted)
      room = options.memory_bytes if options.free_bytes is None else min(options.memory_bytes, options.free_bytes)
      if (missing := planned.loading - room) > 0:
        raise ModelTooLargeError(
            f"{shard} takes {math.ceil(planned.loading / _MB)} MB while {offer.name} loads it, and there is room for "
            f"{max(0, room) // _MB}: {math.ceil(missing / _MB)} MB are missing",
            missing_mb=math.ceil(missing / _MB)
        )
      free = None if options.free_bytes is None else max(0, options.free_bytes - overhead)
      own = replace(options, memory_bytes=max(0, options.memory_bytes - overhead), free_bytes=free)
      before = held_bytes()
      with PeakWatch() as watch:
        model = self._engines.instance(offer.name).load(shard, checkpoint, own, progress)
      self._engines.settle(checkpoint.fingerprint, offer.name)
      checkpoint.let_go()
      give_back()
      measured = StageBytes(max(0, watch.peak - before), max(0, held_bytes() - before))
      return LoadedShard(model, offer.name, planned, measured, overhead)

    def progress(fraction: float) -> None:
      self.loading[shard.model_id] = fraction
      log(3, "%s: %.0f %%", shard, fraction * 100)

    started = time.monotonic()
    self.loading_bytes[shard.model_id] = checkpoint.size.stage_bytes(shard.start_layer, shard.end_layer + 1)
    try:
      loaded = await self._thread.run(work)
    finally:
      self.loading.pop(shard.model_id, None)
      self.loading_bytes.pop(shard.model_id, None)
    tidy()
    planned, measured, memory = loaded.planned, loaded.measured, loaded.model.memory
    log(
        1,
        "loaded %s in %.1f s: %d MB (planned: %d with caches), at most %d MB meanwhile (planned: %d), room for %d tokens of KV",
        shard,
        time.monotonic() - started, measured.held // _MB, planned.held // _MB, measured.loading // _MB,
        planned.loading // _MB, memory.max_kv_tokens
    )
    return loaded


def _planned(offer: EngineOffer, shard: Shard, checkpoint: Checkpoint, wanted: LoadedFor) -> StageBytes:
  kv_tokens = wanted.kv_tokens(checkpoint.config.max_context)
  return offer.weights.stage(checkpoint.size, shard.start_layer, shard.end_layer + 1, kv_tokens)


def _let_go(error: BaseException | None) -> None:
  """Free what a load that failed has in its hands, half a model maybe, before another engine loads the same."""
  while error is not None:
    traceback.clear_frames(error.__traceback__)
    error = error.__cause__ or error.__context__
