"""What an entry node must know of a model: sizes for planning, tokenizer and template for prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from exo.download.disk_stamp import Stamp
from exo.download.model_store import DUMMY_MODEL, ModelEntry, ModelStore
from exo.download.progress import DownloadProgress, keep_latest
from exo.errors import InvalidRequestError
from exo.inference.grammar import GrammarCompiler
from exo.inference.model_facts import ModelFacts
from exo.inference.shard import Shard
from exo.inference.tokenizer import Tokenizer, TooManyTokensError
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.inference.weights.contradictions import check_consistent, check_tokenizer
from exo.inference.weights.parts import file_spans, shard_tensors
from exo.log import log
from exo.topology.model_size import ModelSize


@dataclass(frozen=True)
class ModelInfo:
  """A model that is on this machine, opened."""
  id: str
  checkpoint: Checkpoint
  tokenizer: Tokenizer
  fingerprint: str
  grammars: GrammarCompiler

  @property
  def n_layers(self) -> int:
    return self.size.n_layers

  @property
  def size(self) -> ModelSize:
    return self.checkpoint.size

  @property
  def facts(self) -> ModelFacts:
    return self.checkpoint.facts

  @property
  def max_context(self) -> int:
    return self.checkpoint.config.max_context

  @property
  def n_words(self) -> int:
    """Rows of the embedding: the tokenizer may know more words, the model does not."""
    return self.checkpoint.config.vocab_size

  def encode(self,
             text: str,
             what: str = "the prompt",
             param: str | None = None,
             *,
             most: int | None = None) -> list[int]:
    """Token ids of a whole prompt, at most `most` (by default the context). Blocks, a second at worst.

    Raises `InvalidRequestError`, which calls the text `what`, for a longer one: see `Tokenizer.encode_within`.
    """
    try:
      return self.tokenizer.encode_within(text, self.max_context if most is None else most, add_bos=True)
    except TooManyTokensError as error:
      raise self.too_long(str(error), what, param) from None

  def too_long(self, tokens: str, what: str, param: str | None) -> InvalidRequestError:
    return InvalidRequestError(
        f"{what} has {tokens}, the context of {self.id} is {self.max_context}", param, "context_length_exceeded"
    )

  def check_words(self, token_ids: Sequence[int]) -> None:
    """Raises `InvalidRequestError` for a token that the embedding has no row for."""
    if token_ids and min(token_ids) >= 0 and max(token_ids) < self.n_words:
      return
    wrong = next((i for i in token_ids if not 0 <= i < self.n_words), None)
    if wrong is not None:
      word = self.tokenizer.token_text(wrong)[:40]
      raise InvalidRequestError(
          f"token {wrong} ({word!r}) is in the prompt, but {self.id} knows only the tokens 0 to {self.n_words - 1}"
      )


@dataclass
class _Opened:
  """`stamp` tells the files that were there when it was opened from others; `info` comes when somebody asks."""
  stamp: Stamp
  checkpoint: Checkpoint
  info: ModelInfo | None = None


class ModelCatalog:
  """Opens each model once, and anew when other files lie there; two requests for one that is not here share its download.

  One model's opening waits for no other's.
  """
  def __init__(self, store: ModelStore) -> None:
    self.store = store
    self.downloads: dict[str, DownloadProgress] = {}
    store.listen(self._note_download)
    store.on_false(self._note_false)
    self._opened: dict[str, _Opened] = {}
    self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
    self.replaced: set[str] = set()  # models whose plans may hold what was read from files that are gone

  def _note_download(self, progress: DownloadProgress) -> None:
    keep_latest(self.downloads, progress)

  def _note_false(self, model_id: str) -> None:
    """What was opened has been thrown away."""
    if self._opened.pop(model_id, None) is not None:
      self.replaced.add(model_id)

  async def find(self, model_id: str) -> ModelEntry:
    """Raises `ModelNotFoundError`."""
    return await self.store.look_up(model_id)

  async def listed(self) -> list[ModelEntry]:
    """Every model that can be asked for by name."""
    return await asyncio.to_thread(self.store.listed)

  def context_of(self, model_id: str) -> int | None:
    """How many tokens a model that has been opened can read; None of others."""
    opened = self._opened.get(model_id)
    return None if opened is None else opened.checkpoint.config.max_context

  def _lock(self, model_id: str) -> asyncio.Lock:
    lock = self._locks.get(model_id)
    if lock is None:
      lock = self._locks[model_id] = asyncio.Lock()
    return lock

  async def checkpoint(self, model_id: str) -> Checkpoint:
    """The model's head (configuration, tokenizer, where its tensors lie), fetched first where it is missing; tensors are
    there once `fetch_shard` has brought them.

    Raises `ModelNotFoundError`, `DownloadError`, `ModelFilesError`, `UnsupportedModelError`.
    """
    return (await self._current(model_id)).checkpoint

  async def _current(self, model_id: str) -> _Opened:
    entry = await self.store.find_anywhere(model_id)
    opened = self._opened.get(entry.id)
    if opened is not None and opened.stamp == entry.stamp:
      return opened
    async with self._lock(entry.id):
      path = await self.store.head(entry)
      entry = await self.store.find_anywhere(model_id)  # what its head's coming has changed
      opened = self._opened.get(entry.id)
      if opened is None or opened.stamp != entry.stamp:
        if opened is not None:
          log(1, "%s: other files lie there now, opening it anew", entry.id)
          self.replaced.add(entry.id)
        opened = self._opened[entry.id] = _Opened(entry.stamp, await asyncio.to_thread(open_model, entry, path))
      return opened

  async def fetch_shard(self, shard: Shard) -> None:
    """Bring the tensors of a shard to this machine, and no others. Raises as `checkpoint` does."""
    checkpoint = await self.checkpoint(shard.model_id)
    spans = await asyncio.to_thread(lambda: file_spans(checkpoint, shard_tensors(checkpoint, shard)))
    base = checkpoint.path.parent if checkpoint.path.is_file() else checkpoint.path
    entry = await self.store.find_anywhere(shard.model_id)
    await self.store.bring(entry, {path.relative_to(base).as_posix(): found for path, found in spans.items()})

  async def info(self, model_id: str) -> ModelInfo:
    """As `checkpoint`, with its tokenizer."""
    opened = await self._current(model_id)
    if opened.info is None:
      entry = await self.store.find_anywhere(model_id)
      async with self._lock(entry.id):
        if opened.info is None:
          opened.info = await asyncio.to_thread(_describe, entry.id, opened.checkpoint)
    return opened.info

  async def delete(self, model_id: str) -> int:
    """Remove a model that was fetched; returns the bytes freed. Raises `ModelNotFoundError`, `InvalidRequestError`."""
    entry = await self.find(model_id)
    freed = await self.store.delete(entry.id)
    if (opened := self._opened.pop(entry.id, None)) is not None:
      opened.checkpoint.close()
    self.downloads.pop(entry.id, None)
    self.replaced.discard(entry.id)
    return freed


def open_model(entry: ModelEntry, path: Path) -> Checkpoint:
  """Blocks. Raises `ModelFilesError`, `UnsupportedModelError`."""
  if entry.id == DUMMY_MODEL:
    from exo.inference.dummy.checkpoint import DummyCheckpoint
    return DummyCheckpoint()
  checkpoint = open_checkpoint(path)
  check_consistent(checkpoint)
  # these look at every tensor, of which large models have tens of thousands: here, and not on the event loop
  _ = checkpoint.facts, checkpoint.size, checkpoint.fingerprint
  return checkpoint


def _describe(model_id: str, checkpoint: Checkpoint) -> ModelInfo:
  tokenizer = checkpoint.tokenizer()
  if (odd := check_tokenizer(checkpoint, tokenizer)) is not None:
    log(0, "%s: %s", model_id, odd)
  return ModelInfo(model_id, checkpoint, tokenizer, checkpoint.fingerprint, GrammarCompiler(tokenizer, checkpoint.path))
