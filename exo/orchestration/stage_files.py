"""The files that a stage is loaded from: found, checked to be the plan's, and fetched, before a worker reads them."""

from __future__ import annotations

from exo.errors import ModelNotFoundError, ProtocolError
from exo.inference.engine import StageMemory
from exo.inference.grammar import GrammarCompiler
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import Checkpoint
from exo.model_file import ModelFile
from exo.orchestration.frame_check import FrameBounds
from exo.orchestration.model_catalog import ModelCatalog


class StageFiles:
  """Of all stages of one node."""
  def __init__(self, catalog: ModelCatalog) -> None:
    self._catalog = catalog

  async def checkpoint(self, shard: Shard, file: ModelFile) -> Checkpoint:
    """Raises `OtherFilesError`, and as `ModelCatalog.checkpoint` does."""
    return await self._catalog.checkpoint(shard.model_id, file)

  async def fetch(self, shard: Shard, file: ModelFile) -> None:
    """Bring the shard's tensors to this machine. Raises `DownloadError`, `ModelFilesError`, `UnsupportedModelError`."""
    await self._catalog.fetch_shard(shard, file)

  async def is_gone(self, shard: Shard, file: ModelFile) -> bool:
    """Whether other files lie there than those, or none."""
    try:
      return await self._catalog.is_replaced(shard.model_id, file)
    except ModelNotFoundError:
      return True

  async def frame_bounds(self, shard: Shard, file: ModelFile, memory: StageMemory) -> FrameBounds:
    """What frames for this shard may hold. Raises `ProtocolError` for a shard of another model."""
    config = (await self.checkpoint(shard, file)).config
    if shard.n_layers != config.n_layers:
      raise ProtocolError(f"{shard.model_id} has {config.n_layers} layers here, not {shard.n_layers}")
    return FrameBounds(config.hidden_size, config.vocab_size, memory.max_context, memory.max_sequences)

  async def grammars(self, shard: Shard, file: ModelFile) -> GrammarCompiler:
    """For constrained sampling with the shard's model."""
    return (await self._catalog.info(shard.model_id, file)).grammars
