"""What an entry node must know of a model: sizes for planning, tokenizer and template for prompts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from exo.download.model_store import DUMMY_MODEL, ModelEntry, ModelStore
from exo.download.progress import DownloadProgress
from exo.inference.grammar import GrammarCompiler
from exo.inference.shard import Shard
from exo.inference.tokenizer import Tokenizer
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.inference.weights.parts import Part, file_spans, part_of, shard_tensors
from exo.topology.ring_plan import ModelSize

_KV_ELEMENT_BYTES = 4  # the engines on a CPU keep float32; others need less


@dataclass(frozen=True)
class ModelInfo:
  """A model that is on this machine, opened."""
  id: str
  checkpoint: Checkpoint
  tokenizer: Tokenizer
  size: ModelSize
  fingerprint: str
  grammars: GrammarCompiler

  @property
  def n_layers(self) -> int:
    return self.size.n_layers

  @property
  def max_context(self) -> int:
    return self.checkpoint.config.max_context


def model_size(checkpoint: Checkpoint) -> ModelSize:
  """Bytes by part and the number of weights, as they are in the files."""
  config = checkpoint.config
  layers = [0] * config.n_layers
  embedding = head = weights = 0
  for name in checkpoint.names():
    size, part = checkpoint.tensor_bytes(name), part_of(name)
    weights += checkpoint.tensor_weights(name) if part is not Part.UNUSED else 0
    if isinstance(part, int):
      if part < config.n_layers:
        layers[part] += size
    elif part is Part.EMBEDDING:
      embedding += size
    elif part is Part.HEAD:
      head += size
  tied = not head
  return ModelSize(
      tuple(layers), embedding, embedding if tied else head, config.kv_elements_per_token * _KV_ELEMENT_BYTES, tied,
      weights
  )


class ModelCatalog:
  """Opens each model once; two requests for one that is not here share its download."""
  def __init__(self, store: ModelStore) -> None:
    self.store = store
    self.downloads: dict[str, DownloadProgress] = {}
    store.listen(self._note_download)
    self._open: dict[str, ModelInfo] = {}
    self._checkpoints: dict[str, Checkpoint] = {}
    self._lock = asyncio.Lock()

  def _note_download(self, progress: DownloadProgress) -> None:
    self.downloads[progress.model_id] = progress

  def find(self, model_id: str) -> ModelEntry:
    """Raises `ModelNotFoundError`."""
    return self.store.find(model_id)

  def listed(self) -> list[ModelEntry]:
    """Every model that can be asked for by name."""
    return self.store.listed()

  async def checkpoint(self, model_id: str) -> Checkpoint:
    """The model's head (configuration, tokenizer, where its tensors lie), fetched first where it is missing; tensors are
    there once `fetch_shard` has brought them.

    Raises `ModelNotFoundError`, `DownloadError`, `ModelFilesError`, `UnsupportedModelError`.
    """
    entry = await self.store.find_anywhere(model_id)
    path = await self.store.head(entry)
    async with self._lock:
      if entry.id not in self._checkpoints:
        if entry.id == DUMMY_MODEL:
          from exo.inference.dummy.checkpoint import DummyCheckpoint
          self._checkpoints[entry.id] = DummyCheckpoint()
        else:
          self._checkpoints[entry.id] = await asyncio.to_thread(open_checkpoint, path)
      return self._checkpoints[entry.id]

  async def fetch_shard(self, shard: Shard) -> None:
    """Bring the tensors of a shard to this machine, and no others. Raises as `checkpoint` does."""
    checkpoint = await self.checkpoint(shard.model_id)
    spans = await asyncio.to_thread(lambda: file_spans(checkpoint, shard_tensors(checkpoint, shard)))
    base = checkpoint.path.parent if checkpoint.path.is_file() else checkpoint.path
    entry = await self.store.find_anywhere(shard.model_id)
    await self.store.bring(entry, {path.relative_to(base).as_posix(): found for path, found in spans.items()})

  async def info(self, model_id: str) -> ModelInfo:
    """As `checkpoint`, with its tokenizer."""
    entry = await self.store.find_anywhere(model_id)
    if entry.id not in self._open:
      checkpoint = await self.checkpoint(model_id)
      self._open[entry.id] = await asyncio.to_thread(self._describe, entry, checkpoint)
    return self._open[entry.id]

  async def delete(self, model_id: str) -> int:
    """Remove a model that was fetched; returns the bytes freed. Raises `ModelNotFoundError`, `InvalidRequestError`."""
    entry = await asyncio.to_thread(self.store.find, model_id)
    freed = await self.store.delete(entry.id)
    self._open.pop(entry.id, None)
    if (checkpoint := self._checkpoints.pop(entry.id, None)) is not None:
      checkpoint.close()
    self.downloads.pop(entry.id, None)
    return freed

  @staticmethod
  def _describe(entry: ModelEntry, checkpoint: Checkpoint) -> ModelInfo:
    tokenizer = checkpoint.tokenizer()
    return ModelInfo(
        entry.id, checkpoint, tokenizer, model_size(checkpoint), checkpoint.fingerprint, GrammarCompiler(tokenizer)
    )
