"""Brings a node's own stage of a plan into its engine."""

from __future__ import annotations

import gc
import time
from dataclasses import replace

from exo.errors import ModelNotFoundError, OtherFilesError, ProtocolError
from exo.inference.device_thread import DeviceThread
from exo.inference.engine import InferenceEngine, LoadOptions, StageMemory, StageModel
from exo.inference.engines import EngineChoice, load_engine, weight_memory
from exo.inference.grammar import GrammarCompiler
from exo.inference.proof import prove
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import Checkpoint
from exo.log import log
from exo.orchestration.frame_check import FrameBounds
from exo.orchestration.model_catalog import ModelCatalog, model_size
from exo.system_figures import processors
from exo.topology.ring_plan import MIN_KV_TOKENS


class ShardLoader:
  """The engine is imported when the first shard is asked for, on the device thread like all that it does."""
  def __init__(
      self,
      catalog: ModelCatalog,
      device: DeviceThread,
      choice: EngineChoice,
      quantize: str | None = None,
      library_debug: int = 0
  ) -> None:
    self._catalog, self._device, self._choice, self._quantize = catalog, device, choice, quantize
    self._library_debug = library_debug
    self._engine: InferenceEngine | None = None
    self.loading: dict[str, float] = {}  # model: how far its shard is, 0 to 1

  async def needed_bytes(self, shard: Shard) -> int:
    """An estimate of the shard's weights in memory, with room for a small KV cache."""
    size = model_size(await self._catalog.checkpoint(shard.model_id))
    scale = weight_memory(self._choice.name, self._quantize).scale(size)
    cache = shard.layer_count * size.kv_bytes_per_token * MIN_KV_TOKENS
    return int(size.stage_bytes(shard.start_layer, shard.end_layer + 1) * scale) + cache

  async def frame_bounds(self, shard: Shard, memory: StageMemory) -> FrameBounds:
    """What frames for this shard may hold. Raises `ProtocolError` for a shard of another model."""
    config = (await self._catalog.checkpoint(shard.model_id)).config
    if shard.n_layers != config.n_layers:
      raise ProtocolError(f"{shard.model_id} has {config.n_layers} layers here, not {shard.n_layers}")
    return FrameBounds(config.hidden_size, config.vocab_size, memory.max_context, memory.max_sequences)

  async def prove(self) -> None:
    """Compute something that needs nobody's model. Raises what the engine raises."""
    await self._device.run(lambda: prove(self._loaded_engine(), processors(), self._quantize, self._library_debug))

  async def renew(self) -> None:
    """From now on a new instance of the engine, proved. Raises as `prove` does."""
    self._engine = None
    await self.prove()

  def _loaded_engine(self) -> InferenceEngine:
    """On the device thread."""
    if self._engine is None:
      self._engine = load_engine(self._choice.name)
    return self._engine

  async def grammars(self, shard: Shard) -> GrammarCompiler:
    """For constrained sampling with the shard's model."""
    return (await self._catalog.info(shard.model_id)).grammars

  async def fetch(self, shard: Shard, fingerprint: str) -> None:
    """Bring the shard's tensors to this machine. Raises `DownloadError`, `ModelFilesError`, `UnsupportedModelError`."""
    await self._checkpoint(shard, fingerprint)
    await self._catalog.fetch_shard(shard)

  async def is_gone(self, shard: Shard, fingerprint: str) -> bool:
    """Whether other files lie there than those, or none."""
    try:
      await self._checkpoint(shard, fingerprint)
    except (OtherFilesError, ModelNotFoundError):
      return True
    return False

  async def _checkpoint(self, shard: Shard, fingerprint: str) -> Checkpoint:
    checkpoint = await self._catalog.checkpoint(shard.model_id)
    if checkpoint.fingerprint != fingerprint:
      raise OtherFilesError(
          f"this node holds another model under the name {shard.model_id}: give one of the two another name"
      )
    return checkpoint

  async def load(self, shard: Shard, fingerprint: str, options: LoadOptions) -> StageModel:
    """Of what `fetch` has brought. Raises `ModelFilesError`, `UnsupportedModelError`, `EngineError`."""
    checkpoint = await self._checkpoint(shard, fingerprint)

    def work() -> StageModel:
      return self._loaded_engine().load(
          shard, checkpoint, replace(options, quantize=self._quantize, library_debug=self._library_debug), progress
      )

    def progress(fraction: float) -> None:
      self.loading[shard.model_id] = fraction
      log(3, "%s: %.0f %%", shard, fraction * 100)

    started = time.monotonic()
    try:
      model = await self._device.run(work)
    finally:
      self.loading.pop(shard.model_id, None)
    # vocabularies and graphs stay: collections during generation need not look at them again, but those at a load do, or what
    # ended since the load before would stay, too
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    log(
        1, "loaded %s in %.1f s: %d MB, room for %d tokens of KV", shard,
        time.monotonic() - started, model.memory.weight_bytes // 2**20, model.memory.max_kv_tokens
    )
    return model
