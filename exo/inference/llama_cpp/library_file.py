"""Which library of llama.cpp is used: the one that is named, one that was built for this processor, or the one that comes along."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NAMES = {"darwin": "libllama.dylib", "win32": "llama.dll"}


@dataclass(frozen=True, slots=True)
class LibraryFile:
  """`origin` is for people: where it comes from."""
  path: Path
  origin: str


def library_files(named: Path | None = None) -> Iterator[LibraryFile]:
  """The libraries that are here, in the order of choice. `named` is what EXO_LLAMA_CPP says: a file, or a folder with one in it; then
  there is no other. Looks for packages without importing them."""
  if named is not None:
    yield LibraryFile(_in_folder(named) if named.is_dir() else named, "EXO_LLAMA_CPP")
    return
  if (folder := _package_folder("llama_cpp")) is not None and (path := _in_folder(folder / "lib")).is_file():
    yield LibraryFile(path, "llama-cpp-python, built for this processor")
  if (folder := _package_folder("xllamacpp")) is not None:
    for path in sorted(folder.glob("xllamacpp.*")):
      if path.suffix in (".so", ".pyd", ".dylib"):
        yield LibraryFile(path, "xllamacpp")


def _in_folder(folder: Path) -> Path:
  return folder / _NAMES.get(sys.platform, "libllama.so")


def _package_folder(name: str) -> Path | None:
  try:
    spec = importlib.util.find_spec(name)
  except (ImportError, ValueError):
    return None
  return Path(spec.origin).parent if spec is not None and spec.origin else None
