"""Which libraries of llama.cpp are here: the one that is named, one that was built for this processor, and the one that comes along."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from exo.inference.library_version import library_version

_NAMES = {"darwin": "libllama.dylib", "win32": "llama.dll"}
_OTHER_NAMES = re.compile(
    r"libllama(-[0-9a-f]{6,})?\.(so[.\d]*|dylib)"
)  # of wheels, whose tools give names of their own
_SUBFOLDERS = ("", "lib", "bin", "build/bin")  # of an installation, and of llama.cpp's own folder once it is built


@dataclass(frozen=True, slots=True)
class LibraryFile:
  """`origin` is what it comes from: a package, or what names it. `version` is the package's, "" where there is none. `is_native`: built on
  this machine, for its processor."""
  path: Path
  origin: str
  version: str = ""
  is_native: bool = False

  def __str__(self) -> str:
    return f"{self.origin} {self.version}".rstrip() + (", built for this processor" if self.is_native else "")


def library_files(named: Path | None = None) -> Iterator[LibraryFile]:
  """In the order of choice. `named` is what EXO_LLAMA_CPP says: a file, or a folder with one in it; then there is no other. Looks for
  packages without importing them."""
  if named is not None:
    yield LibraryFile(_in_folder(named) if named.is_dir() else named, "EXO_LLAMA_CPP")
    return
  if (native := native_file()) is not None:
    yield native
  if (folder := _package_folder("xllamacpp")) is not None:
    for path in sorted(folder.glob("xllamacpp.*")):
      if path.suffix in (".so", ".pyd", ".dylib"):
        yield LibraryFile(path, "xllamacpp", library_version("xllamacpp"))


def native_file() -> LibraryFile | None:
  """That of the package whose users build it."""
  folder = _package_folder("llama_cpp")
  found = None if folder is None else native_in(folder, library_version("llama-cpp-python"))
  return found if found is not None and found.path.is_file() else None


def native_in(package: Path, version: str) -> LibraryFile:
  return LibraryFile(package / "lib" / _name(), "llama-cpp-python", version, is_native=True)


def _name() -> str:
  return _NAMES.get(sys.platform, "libllama.so")


def _in_folder(named: Path) -> Path:
  for folder in (named / sub for sub in _SUBFOLDERS):
    if (folder / _name()).is_file():
      return folder / _name()
  for folder in (named / sub for sub in _SUBFOLDERS):
    if found := sorted(path for path in folder.glob("libllama*") if _OTHER_NAMES.fullmatch(path.name)):
      return found[0]
  return named / _name()


def _package_folder(name: str) -> Path | None:
  try:
    spec = importlib.util.find_spec(name)
  except (ImportError, ValueError):
    return None
  return Path(spec.origin).parent if spec is not None and spec.origin else None
