"""What an entry node must know of a model: sizes for planning, tokenizer and template for prompts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from exo.download.model_store import DUMMY_MODEL, ModelEntry, ModelStore
from exo.download.progress import DownloadProgress
from exo.inference.grammar import GrammarCompiler
from exo.inference.tokenizer import Tokenizer
from exo.inference.weights.checkpoint import EMBEDDING, HEAD, Checkpoint, open_checkpoint
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
  is_local: bool
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
    weights += checkpoint.tensor_weights(name)
    size, parts = checkpoint.tensor_bytes(name), name.split(".")
    if "layers" in parts and parts[parts.index("layers") + 1].isdigit():
      layer = int(parts[parts.index("layers") + 1])
      if layer < config.n_layers:
        layers[layer] += size
    elif name == EMBEDDING:
      embedding += size
    elif name == HEAD:
      head += size
  tied = not checkpoint.has(HEAD)
  return ModelSize(
      tuple(layers), embedding, embedding if tied else head, config.kv_elements_per_token * _KV_ELEMENT_BYTES, tied,
      weights
  )


class ModelCatalog:
  """Opens each model once; two requests for one that is not here share its download."""
  def __init__(self, store: ModelStore) -> None:
    self._store = store
    self.downloads: dict[str, DownloadProgress] = {}
    store.listen(self._note_download)
    self._open: dict[str, ModelInfo] = {}
    self._checkpoints: dict[str, Checkpoint] = {}
    self._lock = asyncio.Lock()

  def _note_download(self, progress: DownloadProgress) -> None:
    self.downloads[progress.model_id] = progress

  def find(self, model_id: str) -> ModelEntry:
    """Raises `ModelNotFoundError`."""
    return self._store.find(model_id)

  def listed(self) -> list[ModelEntry]:
    """Every model that can be asked for by name."""
    return self._store.listed()

  async def checkpoint(self, model_id: str) -> Checkpoint:
    """The model's files, fetched first where they are missing. Raises `DownloadError`, `ModelFilesError`."""
    entry = self._store.find(model_id)
    path = await self._store.fetch(entry)
    async with self._lock:
      if entry.id not in self._checkpoints:
        if entry.id == DUMMY_MODEL:
          from exo.inference.dummy.checkpoint import DummyCheckpoint
          self._checkpoints[entry.id] = DummyCheckpoint()
        else:
          self._checkpoints[entry.id] = await asyncio.to_thread(open_checkpoint, path)
      return self._checkpoints[entry.id]

  async def info(self, model_id: str) -> ModelInfo:
    """As `checkpoint`, with its tokenizer."""
    entry = self._store.find(model_id)
    if entry.id not in self._open:
      checkpoint = await self.checkpoint(model_id)
      self._open[entry.id] = await asyncio.to_thread(self._describe, entry, checkpoint)
    return self._open[entry.id]

  @staticmethod
  def _describe(entry: ModelEntry, checkpoint: Checkpoint) -> ModelInfo:
    tokenizer = checkpoint.tokenizer()
    return ModelInfo(
        entry.id, checkpoint, tokenizer, model_size(checkpoint), checkpoint.fingerprint, entry.is_local,
        GrammarCompiler(tokenizer)
    )
