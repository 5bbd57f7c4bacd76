"""What an entry node must know of a model: sizes for planning, tokenizer and template for prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from weakref import WeakValueDictionary

from exo.download.disk_stamp import Stamp
from exo.download.model_names import name_of_version, version_in
from exo.download.model_store import DUMMY_MODEL, ModelEntry, ModelStore, Removed
from exo.download.progress import DownloadProgress, keep_latest
from exo.download.transfer import Wants
from exo.errors import (
    ContextExceededError,
    DownloadError,
    InvalidRequestError,
    ModelFilesError,
    ModelNotFoundError,
    OtherFilesError,
    UnsupportedModelError,
)
from exo.inference.grammar import GrammarCompiler
from exo.inference.model_facts import ModelFacts
from exo.inference.shard import Shard
from exo.inference.tokenizer import Tokenizer, TooManyTokensError
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.inference.weights.contradictions import check_consistent, check_tokenizer
from exo.inference.weights.parts import file_spans, shard_tensors
from exo.log import log
from exo.model_file import ModelFile
from exo.models import BUILT_IN, Registry
from exo.orchestration.file_identity import comparable, file_of
from exo.orchestration.model_sampling import model_sampling
from exo.sampling_defaults import SamplingDefaults
from exo.topology.model_size import ModelSize

_MANY_WORDS = 4096  # of a vocabulary that is prepared for grammars ahead; a small one is ready at once


@dataclass(frozen=True)
class ModelInfo:
  """A model that is on this machine, opened. `most_context` is what requests may have at most, whatever its own context is."""
  id: str
  checkpoint: Checkpoint
  tokenizer: Tokenizer
  file: ModelFile
  grammars: GrammarCompiler
  most_context: int | None = None
  registry: Registry = BUILT_IN

  @property
  def fingerprint(self) -> str:
    """Short for `file`."""
    return self.file.key

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
    """Tokens of a request and its answer."""
    own = self.checkpoint.config.max_context
    return own if self.most_context is None else min(own, self.most_context)

  @property
  def n_words(self) -> int:
    """Rows of the embedding: the tokenizer may know more words, the model does not."""
    return self.checkpoint.config.vocab_size

  @cached_property
  def sampling(self) -> SamplingDefaults:
    """What its answers are drawn with where nobody says anything else."""
    return model_sampling(self.id, self.checkpoint.sampling.defaults, self.registry)

  def encode(
      self,
      text: str,
      what: str = "the prompt",
      param: str | None = None,
      *,
      most: int | None = None,
      mark: str = ""
  ) -> list[int]:
    """Token ids of a whole prompt, at most `most` (by default the context). Blocks, a second at worst.

    Raises `InvalidRequestError`, which calls the text `what`, for a longer one: see `Tokenizer.encode_within`, also for `mark`.
    """
    try:
      return self.tokenizer.encode_within(text, self.max_context if most is None else most, add_bos=True, mark=mark)
    except TooManyTokensError as error:
      raise self.too_long(error.count, what, param, exact=error.exact) from None

  def too_long(self, tokens: int, what: str, param: str | None, *, exact: bool = True) -> ContextExceededError:
    own = self.checkpoint.config.max_context
    bound = f", as --context says: its own is {own}" if self.max_context < own else ""
    told = f"{'' if exact else 'at least '}{tokens} tokens"
    return ContextExceededError(
        f"{what} has {told}, the context of {self.id} is {self.max_context}{bound}", param, tokens, self.max_context
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
  id: str
  stamp: Stamp
  checkpoint: Checkpoint
  file: ModelFile
  info: ModelInfo | None = None


class ModelCatalog:
  """Opens each model once, and anew when other files lie there; two requests for one that is not here share its download.

  One model's opening waits for no other's. `most_context` bounds the context of all.
  """
  def __init__(self, store: ModelStore, most_context: int | None = None) -> None:
    self.store, self._most_context = store, most_context
    self.downloads: dict[str, DownloadProgress] = {}
    store.listen(self._note_download)
    store.on_false(self._note_false)
    self._opened: dict[str, _Opened] = {}
    self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
    self._names: dict[str, str] = {}  # of versions: those of the models that they are versions of
    self._noted: set[tuple[str, str]] = set()  # models with the names of deviations that the log has
    self.replaced: set[str] = set()  # models whose plans may hold what was read from files that are gone

  def _note_download(self, progress: DownloadProgress) -> None:
    keep_latest(self.downloads, progress)

  def _note_false(self, model_id: str) -> None:
    """What was opened has been thrown away."""
    if self._opened.pop(model_id, None) is not None:
      self.replaced |= self.names_of(model_id)

  async def find(self, model_id: str) -> ModelEntry:
    """Raises `ModelNotFoundError`."""
    return await self.store.look_up(model_id)

  async def listed(self) -> list[ModelEntry]:
    """Every model that can be asked for by name."""
    return await asyncio.to_thread(self.store.listed)

  def context_of(self, model_id: str, file: ModelFile) -> int | None:
    """How many tokens a model that has been opened can read, from these files or else from those that have its name; None of
    others."""
    opened = next((o for o in self._opened.values() if o.file.key == file.key), self._opened.get(model_id))
    return None if opened is None else opened.checkpoint.config.max_context

  def _lock(self, model_id: str) -> asyncio.Lock:
    lock = self._locks.get(model_id)
    if lock is None:
      lock = self._locks[model_id] = asyncio.Lock()
    return lock

  async def checkpoint(self, model_id: str, file: ModelFile | None = None) -> Checkpoint:
    """The model's head (configuration, tokenizer, where its tensors lie), fetched first where it is missing; tensors are
    there once `fetch_shard` has brought them. Of these files where some are given, else of those that have the name here.

    Raises `ModelNotFoundError`, `DownloadError`, `ModelFilesError`, `UnsupportedModelError`; `OtherFilesError` where the files
    that are wanted cannot be had here.
    """
    return (await self._of_file(model_id, file)).checkpoint

  async def is_here(self, model_id: str, file: ModelFile) -> bool:
    """Whether these files are whole on this machine. Raises as `checkpoint` does."""
    return (await self.find((await self._of_file(model_id, file)).id)).path is not None

  async def is_replaced(self, model_id: str, file: ModelFile) -> bool:
    """Whether other files lie here under this name, and these are not here at all. Fetches nothing.

    Raises `ModelNotFoundError`, `ModelFilesError`.
    """
    entry = await self.store.find_anywhere(model_id)
    if not entry.stamp:
      return False
    with suppress(UnsupportedModelError):
      if await self._is_of(await self._current(model_id), file):
        return False
    name = name_of_version(entry.id, entry.card, file)
    return name is None or await asyncio.to_thread(self._is_absent, name)

  def _is_absent(self, version: str) -> bool:
    with suppress(ModelNotFoundError):
      return self.store.holding(version) is None
    return True

  async def _of_file(self, model_id: str, file: ModelFile | None) -> _Opened:
    own: _Opened | None = None
    try:
      own = await self._current(model_id)
    except UnsupportedModelError:
      if file is None:
        raise
    if own is not None and (file is None or await self._is_of(own, file)):
      return own
    assert file is not None
    entry = await self.store.find_anywhere(model_id)
    # a folder of the user's own is taken at its word, but for the form in which the model is packed
    may_differ = entry.card is not None or own is None or own.file.is_form_of(file)
    name = name_of_version(entry.id, entry.card, file) if may_differ else None
    if name is None:
      raise OtherFilesError(f"this node has other files under the name {model_id} than {file}: give them another name")
    if self.store.is_vouched(entry.id):
      self.store.vouch(name)
    try:
      found = await self._current(await asyncio.to_thread(self._kept_as, name))
    except (ModelNotFoundError, DownloadError, ModelFilesError) as error:
      raise OtherFilesError(
          f"this node has other files of {model_id} than {file}, which do not come: {error}"
      ) from error
    if not await self._is_of(found, file):
      raise OtherFilesError(f"this node has other files of {model_id} than {file}, and nobody gives them")
    self._names[found.id] = entry.id
    return found

  def _kept_as(self, version: str) -> str:
    """The name under which a version lies here, if it does: what a repository's name means may be this very revision."""
    name, _ = version_in(version)
    with suppress(ModelNotFoundError, ModelFilesError):
      kept, held = self.store.holding(version), self.store.holding(name)
      if kept is not None and held is not None and kept.base == held.base:
        return name
    return version

  async def _is_of(self, opened: _Opened, file: ModelFile) -> bool:
    """Whether these are the same weights, found out where that is not known yet."""
    same = opened.file.is_same(file)
    if same is not None or (await self.find(opened.id)).path is None:
      return same is True
    async with self._lock(opened.id):  # once, since it may take a while
      if opened.file.is_same(file) is None:
        opened.file = await asyncio.to_thread(self._compared, opened, file)
        if opened.info is not None:
          opened.info = replace(opened.info, file=opened.file)
    return opened.file.is_same(file) is True

  def _compared(self, opened: _Opened, file: ModelFile) -> ModelFile:
    holding = self.store.holding_of_entry(self.store.find(opened.id))
    if holding is None:
      return opened.file
    return comparable(opened.file, file, opened.checkpoint, holding, self.store.contents)

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
          self.replaced |= self.names_of(entry.id)
        opened = self._opened[entry.id] = await asyncio.to_thread(self._open, entry, path)
      return opened

  def _open(self, entry: ModelEntry, path: Path) -> _Opened:
    checkpoint = open_model(entry, path)
    holding = self.store.holding_of_entry(entry)
    file = file_of(checkpoint, holding, self.store.contents, whole=entry.path is not None)
    return _Opened(entry.id, entry.stamp, checkpoint, file)

  def names_of(self, model_id: str) -> set[str]:
    """By which names plans may run what is kept under this one: a version is also run under the name of its model."""
    return {model_id, self._names.get(model_id, model_id)}

  async def fetch_shard(self, shard: Shard, file: ModelFile | None = None) -> None:
    """Bring the tensors of a shard to this machine, and no others. Raises as `checkpoint` does."""
    opened = await self._of_file(shard.model_id, file)
    entry = await self.store.find_anywhere(opened.id)
    await self.store.bring(entry, await asyncio.to_thread(self._spans, entry, opened.checkpoint, shard))

  def _spans(self, entry: ModelEntry, checkpoint: Checkpoint, shard: Shard) -> Wants:
    holding = self.store.holding_of_entry(entry)
    if holding is None:  # a model without files
      return {}
    spans = file_spans(checkpoint, shard_tensors(checkpoint, shard))
    return {path.relative_to(holding.base).as_posix(): found for path, found in spans.items()}

  async def info(self, model_id: str, file: ModelFile | None = None) -> ModelInfo:
    """As `checkpoint`, with its tokenizer."""
    opened = await self._of_file(model_id, file)
    if opened.info is None:
      async with self._lock(opened.id):
        if opened.info is None:
          opened.info = await asyncio.to_thread(_describe, opened, self._most_context, self.store.registry)
    return opened.info if opened.info.id == model_id else replace(opened.info, id=model_id)

  def known_deviations(self, model_id: str) -> list[str]:
    """As in `ModelFacts`, of a model that is opened here."""
    opened = self._opened.get(model_id)
    return [] if opened is None else opened.checkpoint.facts.known_deviations

  def note_deviations(self, model: ModelInfo, length: int) -> None:
    """Say once in the log what an engine is known to compute otherwise than a model's authors in a prompt of so many tokens."""
    for found in model.facts.deviations:
      if found.known and length > found.since and (model.id, found.name) not in self._noted:
        self._noted.add((model.id, found.name))
        log(0, "%s: known deviation where the engine named here computes it, %s", model.id, found)

  async def delete(self, model_id: str) -> Removed:
    """Remove a model that was fetched. Raises `ModelNotFoundError`, `InvalidRequestError`."""
    entry = await self.find(model_id)
    removed = await self.store.delete(entry.id)
    if (opened := self._opened.pop(entry.id, None)) is not None:
      opened.checkpoint.close()
    self.downloads.pop(entry.id, None)
    self.replaced.discard(entry.id)
    return removed


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


def _describe(opened: _Opened, most_context: int | None, registry: Registry) -> ModelInfo:
  model_id, checkpoint = opened.id, opened.checkpoint
  tokenizer = checkpoint.tokenizer()
  if (odd := check_tokenizer(checkpoint, tokenizer)) is not None:
    log(0, "%s: %s", model_id, odd)
  if ignored := checkpoint.sampling.ignored:
    log(0, "%s: of what its files say of sampling, this is ignored: %s", model_id, "; ".join(ignored))
  grammars = GrammarCompiler(tokenizer)
  if tokenizer.vocab_size >= _MANY_WORDS:
    grammars.prepare()
  return ModelInfo(model_id, checkpoint, tokenizer, opened.file, grammars, most_context, registry)
