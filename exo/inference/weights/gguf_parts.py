"""The headers of a GGUF model, which may lie in several files, as one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from exo.errors import ModelFilesError
from exo.gguf_names import parts_of
from exo.inference.weights.file_bytes import FileBytes
from exo.inference.weights.gguf_header import GgufHeader, GgufTensor, parse_gguf_header


def open_parts(path: Path) -> tuple[list[FileBytes], GgufHeader]:
  """The files of the model that `path` is, or is a part of, to be closed by the caller, and their headers as one.

  Raises `ModelFilesError` for parts that are missing or do not belong together.
  """
  paths = parts_of(path)
  if missing := [part.name for part in paths if not part.exists()]:
    raise ModelFilesError(
        f"{paths[0].name} is one of {len(paths)} parts, of which these are missing: {', '.join(missing[:3])}"
    )
  with ExitStack() as stack:
    files = [stack.enter_context(closing(FileBytes(part))) for part in paths]
    headers = [parse_gguf_header(file.head(), file.size) for file in files]
    header = _together(paths, headers)
    stack.pop_all()
  return files, header


def read_parts(path: Path) -> GgufHeader:
  """As `open_parts`, with nothing left open."""
  files, header = open_parts(path)
  for file in files:
    file.close()
  return header


def _together(paths: Sequence[Path], headers: Sequence[GgufHeader]) -> GgufHeader:
  first = headers[0]
  count = first.metadata.get("split.count", 1) or 1
  if count != len(headers):
    raise ModelFilesError(
        f"{paths[0].name} says that it is one of {count} parts, its name that it is one of {len(headers)}"
    )
  if len(headers) == 1:
    return first
  tensors = dict[str, GgufTensor]()
  for part, (path, header) in enumerate(zip(paths, headers, strict=True)):
    if header.metadata.get("split.no", part) != part:
      raise ModelFilesError(f"{path.name} says that it is part {header.metadata['split.no']}, counted from 0")
    for name, tensor in header.tensors.items():
      if name in tensors:
        raise ModelFilesError(f"tensor {name!r} is in two of the parts of {paths[0].name}")
      tensors[name] = replace(tensor, part=part)
  if first.metadata.get("split.tensors.count", len(tensors)) != len(tensors):
    raise ModelFilesError(f"the parts of {paths[0].name} do not belong together: {len(tensors)} tensors are in them")
  return replace(first, tensors=tensors)
