"""Brings shards of models into a worker's engine, from files that somebody else has opened and fetched."""

from __future__ import annotations

import time
import traceback

from exo.errors import EngineUnavailableError, ModelTooLargeError, OutOfMemoryError, in_words
from exo.inference.engine import LoadOptions, StageModel
from exo.inference.offer import EngineOffer
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import Checkpoint
from exo.log import log
from exo.process_memory import give_back
from exo.topology.loaded_for import WHAT_FITS, LoadedFor
from exo.worker.device_thread import DeviceThread
from exo.worker.engines import WorkerEngines
from exo.worker.heap import tidy


class ShardLoader:
  """Knows checkpoints and no files: whoever calls `load` has seen to it that the shard's tensors are there."""
  def __init__(self, thread: DeviceThread, engines: WorkerEngines) -> None:
    self._thread, self._engines = thread, engines
    self.loading: dict[str, float] = {}  # model: how far its shard is, 0 to 1

  def needed_bytes(self, shard: Shard, checkpoint: Checkpoint, wanted: LoadedFor = WHAT_FITS) -> int:
    """An estimate of the shard's weights in memory, with room for the KV cache that is wanted."""
    held = self._able(shard, checkpoint)[0].weights
    kv_tokens = wanted.kv_tokens(checkpoint.config.max_context)
    return held.stage_bytes(checkpoint.size, shard.start_layer, shard.end_layer + 1, kv_tokens)

  def _able(self, shard: Shard, checkpoint: Checkpoint) -> list[EngineOffer]:
    return self._engines.able(checkpoint.facts, shard, checkpoint.size, checkpoint.fingerprint)

  async def load(self, shard: Shard, checkpoint: Checkpoint, options: LoadOptions) -> StageModel:
    """With the first of the worker's engines that can run it; where that fails for reasons of its own, with the next.

    Raises `ModelFilesError`, `UnsupportedModelError`, `EngineError`: what the first of them raised.
    """
    def work() -> StageModel:
      failures: list[Exception] = []
      for offer in self._able(shard, checkpoint):
        try:
          loaded = self._engines.instance(offer.name).load(shard, checkpoint, options, progress)
          self._engines.settle(checkpoint.fingerprint, offer.name)
          checkpoint.let_go()
          give_back()
          return loaded
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

    def progress(fraction: float) -> None:
      self.loading[shard.model_id] = fraction
      log(3, "%s: %.0f %%", shard, fraction * 100)

    started = time.monotonic()
    try:
      model = await self._thread.run(work)
    finally:
      self.loading.pop(shard.model_id, None)
    tidy()
    log(
        1, "loaded %s in %.1f s: %d MB, room for %d tokens of KV", shard,
        time.monotonic() - started, model.memory.weight_bytes // 2**20, model.memory.max_kv_tokens
    )
    return model


def _let_go(error: BaseException | None) -> None:
  """Free what a load that failed has in its hands, half a model maybe, before another engine loads the same."""
  while error is not None:
    traceback.clear_frames(error.__traceback__)
    error = error.__cause__ or error.__context__
