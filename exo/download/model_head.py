"""The part of a model that every node needs: configuration, tokenizer, and the headers that say where each tensor lies."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from exo.download.disk_threads import in_thread
from exo.download.manifest import INDEX, Manifest, inside, is_plain_name
from exo.download.transfer import Transfer, run_all
from exo.errors import ModelFilesError, UnsupportedModelError
from exo.gguf_names import is_gguf
from exo.inference.own_code import needs_own_code
from exo.inference.weights.gguf_header import MAX_HEADER_BYTES as MAX_GGUF_HEADER_BYTES
from exo.inference.weights.gguf_header import GgufCutOffError, parse_gguf_header
from exo.inference.weights.other_contents import other_contents
from exo.inference.weights.safetensors_checkpoint import MAX_HEADER_BYTES, parse_safetensors_header, read_json

_FIRST_BYTES, _FIRST_GGUF_BYTES = 128, 1 << 19
_PARALLEL_HEADERS = 16
_MOST_HEADERS_BYTES = 512 * 2**20  # of all files together


async def fetch_head(transfer: Transfer, folder: Path) -> Manifest:
  """Bring the head of a model and return the manifest with the weight files that its index names.

  Raises `DownloadError`, `ModelFilesError` for a damaged or hostile one, `UnsupportedModelError` for one that wants to
  run code of its own.
  """
  manifest = transfer.manifest
  await transfer.whole(file.name for file in manifest.auxiliary)
  manifest = await in_thread(_chosen, manifest, folder)
  slots, headers = asyncio.Semaphore(_PARALLEL_HEADERS), _Headers()

  async def header(name: str) -> None:
    async with slots:
      read = _gguf_header if is_gguf(name) else _safetensors_header
      await read(transfer, inside(folder, name), name, headers)

  await run_all(header(file.name) for file in manifest.weights)
  return manifest


def _chosen(manifest: Manifest, folder: Path) -> Manifest:
  if manifest.is_gguf:
    return manifest
  config = read_json(folder / "config.json")
  if needs_own_code(config):
    raise UnsupportedModelError(f"{manifest.source} wants to run code of its own repository, which exo never does")
  index = read_json(folder / INDEX).get("weight_map")
  if index is None:
    return manifest
  if not isinstance(index, dict) or not all(is_plain_name(v) and "/" not in v for v in index.values()):
    raise ModelFilesError(f"{manifest.source}: {INDEX} names files outside the repository's folder")
  if not set(index.values()) <= {file.name for file in manifest.weights}:
    return manifest  # a conversion into other files may have left it behind: whether all tensors are there, their headers tell
  return manifest.with_weights(index.values())


class _Headers:
  """How much of a model's files is header, as far as that is known."""
  def __init__(self) -> None:
    self._bytes = 0

  def add(self, count: int, name: str) -> None:
    """Raises `ModelFilesError` before more is fetched than any model has."""
    self._bytes += count
    if self._bytes > _MOST_HEADERS_BYTES:
      raise ModelFilesError(f"{name} and the files before it claim headers of {self._bytes} bytes: they are damaged")


async def _safetensors_header(transfer: Transfer, path: Path, name: str, headers: _Headers) -> None:
  file = (await transfer.file(name)).file
  if file.size < 8:
    raise ModelFilesError(f"{name} is too short to be a safetensors file")
  first = min(_FIRST_BYTES, file.size)
  await transfer.bring({name: [(0, first)]})
  begin = await in_thread(_read, path, first)
  length = int.from_bytes(begin[:8], "little")
  if not 2 <= length <= min(MAX_HEADER_BYTES, file.size - 8):
    if what := other_contents(begin):
      raise ModelFilesError(f"{name} is {what}")
    raise ModelFilesError(f"{name} claims a header of {length} bytes: it is damaged")
  headers.add(length, name)
  await transfer.bring({name: [(0, 8 + length)]})
  header = await in_thread(_read, path, 8 + length)
  await in_thread(parse_safetensors_header, memoryview(header), file.size, name)


async def _gguf_header(transfer: Transfer, path: Path, name: str, headers: _Headers) -> None:
  """The header does not tell its length: more of it is fetched until it parses."""
  size, wanted, had = (await transfer.file(name)).file.size, _FIRST_GGUF_BYTES, 0
  while True:
    wanted = min(wanted, size)
    headers.add(wanted - had, name)
    had = wanted
    await transfer.bring({name: [(0, wanted)]})
    data = await in_thread(_read, path, wanted)
    try:
      header = await in_thread(parse_gguf_header, memoryview(data), size)
      break
    except GgufCutOffError:
      if wanted >= min(size, MAX_GGUF_HEADER_BYTES):
        raise
    wanted = wanted * 3 // 2
  # rotary factors are configuration that stands among the tensors
  factors = [t for t in header.tensors.values() if t.name.startswith("rope_")]
  await transfer.bring({name: [(t.start, t.start + t.n_bytes) for t in factors]})


def _read(path: Path, count: int) -> bytes:
  with path.open("rb") as file:
    return os.pread(file.fileno(), count, 0)
