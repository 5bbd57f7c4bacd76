"""Models between the nodes of a ring: what neighbours hold, reading it from them, and serving what is here."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from exo.download.manifest import Manifest, RepoFile, manifest_from_json
from exo.download.model_store import Holding, ModelStore
from exo.download.neighbours import READ_BYTES, Held, Neighbours, RangeRead
from exo.download.progress import DownloadProgress, keep_latest
from exo.download.rate_limit import RateLimit
from exo.download.sparse_file import held_spans
from exo.errors import ExoError, ModelFilesError, PeerUnreachableError, ProtocolError
from exo.inference.weights.block_map import BlockMap, Span, block_bytes, digests_of
from exo.log import log
from exo.networking.messages import Message
from exo.networking.model_messages import (
    BlocksFound,
    DownloadNews,
    FindBlocks,
    FindModel,
    ModelFound,
    RangeData,
    ReadRange,
)
from exo.oldest import forget_oldest

_ASK_S, _READ_S = 5.0, 60.0
_BUSY_BYTES_PER_S = 16 * 2**20  # while this node computes tokens: a few per cent of one core
_REMEMBER_S = 2.0
_MOST_REMEMBERED = 64
_NEWS_EVERY_S = 1.0
_MOST_NEWS = 64  # models whose downloads one other node tells of

Call = Callable[[str, Message, float], Awaitable[Message]]
Send = Callable[[str, Message], None]


class ModelSharing(Neighbours):
  """Both sides: asks other nodes for the download, and answers theirs."""
  def __init__(
      self, store: ModelStore, peers: Callable[[], Iterable[str]], send: Send, call: Call, busy: Callable[[], bool]
  ) -> None:
    self._store, self._peers, self._send, self._call, self._busy = store, peers, send, call, busy
    self._limit = RateLimit(_BUSY_BYTES_PER_S)
    self._remembered: dict[str, tuple[float, list[Holding]]] = {}
    self._told_at: dict[str, float] = {}
    self.downloads: dict[str, DownloadProgress] = {}
    self.remote_downloads: dict[str, dict[str, DownloadProgress]] = {}
    store.ask(self)
    store.listen(self._on_progress)

  # asking

  async def _ask_all(self, message: Message) -> dict[str, Message]:
    """The answers of all nodes; those that fail are left out."""
    nodes = list(self._peers())
    answers = await asyncio.gather(*(self._call(n, message, _ASK_S) for n in nodes), return_exceptions=True)
    found: dict[str, Message] = {}
    for node_id, answer in zip(nodes, answers, strict=True):
      if isinstance(answer, ExoError):
        log(2, "%s tells nothing of models: %s", node_id, answer)
      elif isinstance(answer, BaseException):
        raise answer
      else:
        found[node_id] = answer
    return found

  async def manifests(self, model_id: str) -> Mapping[str, Manifest]:
    found: dict[str, Manifest] = {}
    for node_id, answer in (await self._ask_all(FindModel(model_id))).items():
      if isinstance(answer, ModelFound) and answer.manifest_json:
        try:
          manifest = manifest_from_json(answer.manifest_json)
        except ModelFilesError as error:
          log(1, "%s: %s", node_id, error)
          continue
        if manifest.files:
          found[node_id] = manifest
    return found

  async def held(self, manifest: Manifest, files: Sequence[RepoFile]) -> Held:
    sizes = {file.name: file.size for file in files}
    question = FindBlocks(manifest.model_id, tuple((file.name, manifest.identity(file)) for file in files))
    found: dict[str, dict[str, tuple[Span, ...]]] = {}
    for node_id, answer in (await self._ask_all(question)).items():
      if isinstance(answer, BlocksFound):
        found[node_id] = {name: spans for name, spans in answer.files if spans and spans[-1][1] <= sizes.get(name, 0)}
    return found

  async def read(self, node_id: str, manifest: Manifest, file: RepoFile, start: int, end: int) -> RangeRead:
    message = ReadRange(manifest.model_id, file.name, manifest.identity(file), start, end)
    answer = await self._call(node_id, message, _READ_S)
    if not isinstance(answer, RangeData):
      raise ProtocolError(f"{node_id} answered a ReadRange with {type(answer).__name__}")
    return RangeRead(answer.data, answer.digests)

  # answering

  async def answer(self, message: FindModel | FindBlocks | ReadRange) -> Message:
    """Raises `ModelFilesError` for bytes that are not here."""
    holdings = await self._holdings(message.model_id)
    match message:
      case FindModel():
        return ModelFound(holdings[0].manifest.to_json() if holdings else "")
      case FindBlocks():
        holding = _with_files(holdings, message.files)
        return BlocksFound(await asyncio.to_thread(_spans, holding, message.files) if holding is not None else ())
      case ReadRange():
        holding = _with_files(holdings, ((message.name, message.identity), ))
        if holding is None:
          raise ModelFilesError(f"{message.name} of {message.model_id} is not on this node (any more)")
        if self._busy():
          await self._limit.take(message.end - message.start)
        return await asyncio.to_thread(_read, holding, message)

  async def _holdings(self, model_id: str) -> list[Holding]:
    """Every form of a model that is here, what its name stands for first."""
    known = self._remembered.pop(model_id, None)
    if known is not None and time.monotonic() - known[0] <= _REMEMBER_S:
      self._remembered[model_id] = known
      return known[1]
    try:
      holdings = await asyncio.to_thread(self._store.holdings, model_id)
    except (ExoError, OSError) as error:
      log(2, "nothing of %s for neighbours: %s", model_id, error)
      return []
    if holdings:  # names of what is not here come from strangers, and nothing is kept of them
      self._remembered[model_id] = (time.monotonic(), holdings)
      forget_oldest(self._remembered, _MOST_REMEMBERED)
    return holdings

  # progress

  def _on_progress(self, progress: DownloadProgress) -> None:
    keep_latest(self.downloads, progress)
    now = time.monotonic()
    if progress.ended or now - self._told_at.get(progress.model_id, float("-inf")) >= _NEWS_EVERY_S:
      self._told_at = {m: at for m, at in self._told_at.items() if m in self.downloads} | {progress.model_id: now}
      for node_id in list(self._peers()):
        self._tell(node_id, progress)

  def _tell(self, node_id: str, p: DownloadProgress) -> None:
    try:
      self._send(
          node_id,
          DownloadNews(
              p.model_id, p.downloaded_bytes, p.total_bytes, p.done, p.bytes_per_s, p.from_peers_bytes,
              p.from_hub_bytes, p.error, p.status
          )
      )
    except PeerUnreachableError:
      log(2, "%s need not hear of downloads: it is gone", node_id)

  def on_news(self, sender: str, n: DownloadNews) -> None:
    news = self.remote_downloads.setdefault(sender, {})
    news.pop(n.model_id, None)
    news[n.model_id] = DownloadProgress(
        n.model_id, n.downloaded_bytes, n.total_bytes, n.done, n.bytes_per_s, n.from_peers_bytes, n.from_hub_bytes,
        n.error, n.status
    )
    forget_oldest(news, _MOST_NEWS)

  def peer_joined(self, node_id: str) -> None:
    for progress in self.downloads.values():
      self._tell(node_id, progress)

  def peer_left(self, node_id: str) -> None:
    self.remote_downloads.pop(node_id, None)

  def forget(self, model_id: str) -> None:
    """The model has been deleted here."""
    self.downloads.pop(model_id, None)
    self._told_at.pop(model_id, None)
    self._remembered.pop(model_id, None)


def _with_files(holdings: Iterable[Holding], files: Iterable[tuple[str, str]]) -> Holding | None:
  """Of those that have files of these names the one that has most of these very files: forms of one model share some."""
  wanted = dict(files)
  named = [holding for holding in holdings if any(file.name in wanted for file in holding.manifest.files)]

  def shared(holding: Holding) -> int:
    manifest = holding.manifest
    return sum(wanted.get(file.name) == manifest.identity(file) for file in manifest.files)

  return max(named, key=shared, default=None)


def _spans(holding: Holding, files: Iterable[tuple[str, str]]) -> tuple[tuple[str, tuple[Span, ...]], ...]:
  found = []
  for name, identity in files:
    file = holding.manifest.file(name)
    if file is not None and holding.manifest.identity(file) == identity:
      found.append((name, tuple(held_spans(holding.path(name)))))
  return tuple(found)


def _read(holding: Holding, message: ReadRange) -> RangeData:
  file = holding.manifest.file(message.name)
  if file is None or holding.manifest.identity(file) != message.identity:
    raise ModelFilesError(f"{message.name} of {message.model_id} is not on this node")
  path, block = holding.path(message.name), block_bytes(file.size)
  start, end = message.start, message.end
  if not 0 <= start < end <= file.size or start % block or end - start > max(READ_BYTES, block):
    raise ProtocolError(f"bytes {start}..{end} of {message.name} are no range to ask for")
  blocks = BlockMap.beside(path)
  if blocks is not None and not blocks.has(start, end):
    raise ModelFilesError(f"bytes {start}..{end} of {message.name} are not on this node")
  try:
    with path.open("rb") as data:
      content = os.pread(data.fileno(), end - start, start)
  except OSError as error:
    raise ModelFilesError(f"{message.name} cannot be read: {error.strerror}") from error
  return RangeData(content, digests_of(content, block) if blocks is None else blocks.digests(start, end))
