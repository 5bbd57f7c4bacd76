"""The messages about models between neighbours, to protobuf and back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from exo.bounds import MAX_FINGERPRINT, MAX_MODEL_ID, real
from exo.errors import ProtocolError, one_line
from exo.model_file import ModelFile
from exo.networking import messages as m
from exo.networking.grpc import node_service_pb2 as pb
from exo.networking.model_messages import (
    BlocksFound,
    DownloadNews,
    FindBlocks,
    FindModel,
    ListModels,
    ModelFound,
    ModelsListed,
    RangeData,
    ReadRange,
)

_MAX_FILES = 20_000
_TEXT = 2000
_NAME, _WORD = 400, 100
_MAX_SPANS = 2**17  # of all files of a model together
_MAX_MANIFEST = 4 * 2**20
_MOST_BYTES, _MOST_BYTES_PER_S = 2**50, 1e15


def _model_id(text: str) -> str:
  if len(text) > MAX_MODEL_ID:
    raise ProtocolError("a model has an endless name")
  return text


def file_out(file: ModelFile) -> pb.ModelFile:
  return pb.ModelFile(
      headers=file.headers,
      hashes=file.hashes,
      sample=file.sample,
      source=file.source,
      revision=file.revision,
      name=file.name,
      size=file.size,
      shape=file.shape
  )


def file_in(file: pb.ModelFile) -> ModelFile:
  """Raises `ProtocolError`."""
  if max(map(len, (file.headers, file.hashes, file.sample))) > MAX_FINGERPRINT:
    raise ProtocolError("the files of a model have endless hashes")
  texts = (one_line(text[:_NAME]) for text in (file.source, file.revision, file.name, file.shape))
  source, revision, name, shape = texts
  return ModelFile(file.headers, file.hashes, file.sample, source, revision, name, min(file.size, _MOST_BYTES), shape)


def _find_blocks_out(x: FindBlocks) -> dict[str, Any]:
  files = [pb.FindBlocks.File(name=name, identity=identity) for name, identity in x.files]
  return {"find_blocks": pb.FindBlocks(model_id=x.model_id, files=files)}


def _find_blocks_in(x: pb.FindBlocks) -> FindBlocks:
  if len(x.files) > _MAX_FILES:
    raise ProtocolError(f"somebody asks for {len(x.files)} files of one model")
  return FindBlocks(_model_id(x.model_id), tuple((file.name[:_NAME], file.identity[:_NAME]) for file in x.files))


def _blocks_found_out(x: BlocksFound) -> dict[str, Any]:
  files = [
      pb.BlocksFound.File(name=name, edges=[edge for span in spans for edge in span]) for name, spans in x.files
      if spans
  ]
  return {"blocks_found": pb.BlocksFound(files=files)}


def _blocks_found_in(x: pb.BlocksFound) -> BlocksFound:
  if len(x.files) > _MAX_FILES or sum(len(file.edges) for file in x.files) > 2 * _MAX_SPANS:
    raise ProtocolError("somebody has more spans of a model than there can be")
  files = []
  for file in x.files:
    edges = list(file.edges)
    if len(edges) % 2 or any(a >= b for a, b in pairwise(edges)):
      raise ProtocolError("spans of a file are out of order")
    files.append((file.name[:_NAME], tuple(zip(edges[::2], edges[1::2], strict=True))))
  return BlocksFound(tuple(files))


def _read_out(x: ReadRange) -> dict[str, Any]:
  body = pb.ReadRange(model_id=x.model_id, name=x.name, identity=x.identity, start=x.start, end=x.end)
  return {"read_range": body}


def _news_out(x: DownloadNews) -> dict[str, Any]:
  body = pb.DownloadNews(
      model_id=x.model_id,
      downloaded_bytes=x.downloaded_bytes,
      total_bytes=x.total_bytes,
      done=x.done,
      bytes_per_s=x.bytes_per_s,
      from_peers_bytes=x.from_peers_bytes,
      from_hub_bytes=x.from_hub_bytes,
      error=x.error[:_TEXT],
      status=x.status
  )
  return {"download_news": body}


def _news_in(x: pb.DownloadNews) -> DownloadNews:
  return DownloadNews(
      x.model_id[:MAX_MODEL_ID], x.downloaded_bytes, x.total_bytes, x.done, real(x.bytes_per_s, _MOST_BYTES_PER_S),
      x.from_peers_bytes, x.from_hub_bytes, x.error[:_TEXT], x.status[:_WORD]
  )


def _found_in(x: pb.ModelFound) -> ModelFound:
  if len(x.manifest_json) > _MAX_MANIFEST:
    raise ProtocolError("somebody tells of a model with an endless list of files")
  return ModelFound(x.manifest_json)


def _listed_in(x: pb.ModelsListed) -> ModelsListed:
  if len(x.models_json) > _MAX_MANIFEST:
    raise ProtocolError("somebody tells of endless models")
  return ModelsListed(x.models_json)


OUT: dict[type, Callable[[Any], dict[str, Any]]] = {
    FindModel: lambda x: {"find_model": pb.FindModel(model_id=x.model_id)},
    ModelFound: lambda x: {"model_found": pb.ModelFound(manifest_json=x.manifest_json)},
    ListModels: lambda x: {"list_models": pb.ListModels(model_id=x.model_id)},
    ModelsListed: lambda x: {"models_listed": pb.ModelsListed(models_json=x.models_json)},
    FindBlocks: _find_blocks_out,
    BlocksFound: _blocks_found_out,
    ReadRange: _read_out,
    RangeData: lambda x: {"range_data": pb.RangeData(data=x.data, digests=x.digests)},
    DownloadNews: _news_out,
}
IN: dict[str, Callable[[Any], m.Message]] = {
    "find_model": lambda x: FindModel(_model_id(x.model_id)),
    "model_found": _found_in,
    "list_models": lambda x: ListModels(_model_id(x.model_id)),
    "models_listed": _listed_in,
    "find_blocks": _find_blocks_in,
    "blocks_found": _blocks_found_in,
    "read_range": lambda x: ReadRange(_model_id(x.model_id), x.name, x.identity, x.start, x.end),
    "range_data": lambda x: RangeData(x.data, x.digests),
    "download_news": _news_in,
}
