"""What a node tells others of the models on its disk: their files, which bytes of them it has, and what their headers say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import msgspec

from exo.bounds import MAX_MODEL_ID
from exo.download.model_store import ModelEntry, ModelStore
from exo.download.sparse_file import held_spans
from exo.errors import ProtocolError
from exo.inference.weights.block_map import Span, merged
from exo.orchestration.model_profile import ModelProfile
from exo.topology.model_size import PackedWeights

_MOST_MODELS, _MOST_FILES, _MOST_SPANS = 1024, 2048, 4096
_MOST_BYTES = 2**50
_MOST_TEXT, _MOST_NAME = 2000, 400
_MOST_PACKINGS, _MOST_ENCODING = 32, 40
_MOST_JSON = 3 * 2**20  # less than what a message may have
_MOST_LAYERS = 512  # a strategy that tries every division of them must come to an end
_Size = Annotated[int, msgspec.Meta(ge=0, le=_MOST_BYTES)]
_Text = Annotated[str, msgspec.Meta(max_length=400)]


@dataclass(frozen=True)
class HeldFile:
  """`identity` is as `Manifest.identity` has it, `spans` are sorted and do not touch."""
  name: _Text
  identity: _Text
  size: _Size
  spans: Annotated[tuple[tuple[_Size, _Size], ...], msgspec.Meta(max_length=_MOST_SPANS)]


@dataclass(frozen=True)
class HeldModel:
  """A model of which a node has its head at least. `is_own`: it lies in a folder of its user's own."""
  model_id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_MODEL_ID)]
  files: Annotated[tuple[HeldFile, ...], msgspec.Meta(max_length=_MOST_FILES)]
  profile: ModelProfile
  is_own: bool = False

  @property
  def is_whole(self) -> bool:
    return are_whole((self, ))

  @property
  def total_bytes(self) -> int:
    return sum(file.size for file in self.files)


def are_whole(parts: Iterable[HeldModel]) -> bool:
  """Whether what several nodes have of one model is all of it, in the version of one of them at least."""
  models = tuple(parts)
  spans: dict[tuple[str, str], list[Span]] = {}
  for model in models:
    for file in model.files:
      spans.setdefault((file.name, file.identity), []).extend(file.spans)
  together = {key: merged(found) for key, found in spans.items()}
  return any(
      bool(model.files)
      and all(file.size == 0 or together[file.name, file.identity] == [(0, file.size)] for file in model.files)
      for model in models
  )


def held_model(store: ModelStore, entry: ModelEntry, profile: ModelProfile) -> HeldModel | None:
  """Of this machine's disk; None where nothing of it is here. Blocks. Raises `ModelFilesError`, OSError."""
  holding = store.holding_of_entry(entry)
  if holding is None:
    return None
  files = []
  for file in holding.manifest.files:
    spans = held_spans(holding.path(file.name))[:_MOST_SPANS]
    files.append(HeldFile(file.name, holding.manifest.identity(file), file.size, tuple(spans)))
  return HeldModel(entry.id, tuple(files), profile, entry.card is None)


def to_json(models: Iterable[HeldModel]) -> str:
  """Of as many of them as others would read."""
  told: list[bytes] = []
  room = _MOST_JSON
  for model in models:
    text = msgspec.json.encode(model)
    room -= len(text) + 1
    if room < 0 or len(told) == _MOST_MODELS:
      break
    told.append(text)
  return (b"[" + b",".join(told) + b"]").decode()


def from_json(text: str) -> tuple[HeldModel, ...]:
  """Raises `ProtocolError`."""
  try:
    models = msgspec.json.decode(text, type=tuple[HeldModel, ...])
  except (msgspec.DecodeError, RecursionError) as error:
    raise ProtocolError(f"a list of models is malformed: {error}") from error
  if len(models) > _MOST_MODELS or not all(map(_is_plausible, models)):
    raise ProtocolError("a list of models is implausible")
  return models


def _is_plausible(model: HeldModel) -> bool:
  """Numbers that can be reckoned with, and words that can be shown."""
  profile, size = model.profile, model.profile.size
  file = profile.file
  words = (profile.flaw, profile.format, profile.packing, *profile.capabilities)
  told = (file.headers, file.hashes, file.sample, file.source, file.revision, file.name, file.shape)
  if any(len(word) > _MOST_NAME or not word.isprintable() for word in told):
    return False
  if any(len(word) > _MOST_TEXT
         for word in words) or len(profile.capabilities) > 16 or not profile.sampling.is_possible:
    return False
  numbers = [profile.context or 0, file.size]
  if size is not None:
    if not 1 <= size.n_layers <= _MOST_LAYERS:
      return False
    numbers += [
        *size.layer_bytes, size.embedding_bytes, size.head_bytes, size.kv_bytes_per_token, size.n_weights,
        size.shared_bytes, size.row_bytes, size.state_bytes
    ]
    if len(size.packed
           ) > _MOST_PACKINGS or not all(_is_plausible_packing(packed, size.n_layers) for packed in size.packed):
      return False
  return all(0 <= number <= _MOST_BYTES for number in numbers)


def _is_plausible_packing(packed: PackedWeights, n_layers: int) -> bool:
  numbers = (*packed.layers, packed.embedding, packed.head, packed.shared, packed.largest)
  return len(packed.encoding) <= _MOST_ENCODING and len(
      packed.layers
  ) == n_layers and 0 <= packed.file_bytes <= 16 and all(0 <= number <= _MOST_BYTES for number in numbers)
