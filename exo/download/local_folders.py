"""Models that lie in folders of the user's own, or in huggingface_hub's cache: read, never written to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from exo.download.content_sample import KnownContents
from exo.download.manifest import MAX_AUXILIARY_BYTES, SUFFIXES, Manifest, RepoFile, is_plain_name
from exo.gguf_names import is_gguf, is_weights_of_text, model_stem, part_name, parts_of
from exo.model_file import digest_of

_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_model(path: Path) -> bool:
  if path.is_file():
    return is_gguf(path.name)
  if (path / "config.json").is_file():
    return True
  try:
    with os.scandir(path) as children:
      return any(is_weights_of_text(child.name) for child in children)
  except OSError:
    return False


def model_name(path: Path) -> str:
  """The name under which a local folder or file is known: its own, without `.gguf` and which part of a model it is."""
  return model_stem(path.name) if is_gguf(path.name) else path.name


def models_in(folders: Iterable[Path], single: Iterable[Path] = ()) -> dict[str, Path]:
  """Models by name, read anew so that added ones appear; of equal names the first counts."""
  found: dict[str, Path] = {}
  children = (child for folder in folders for child in _children(folder) if not _is_of_another(child.name))
  for path in (*single, *children):
    if not path.name.startswith(".") and is_model(path):
      found.setdefault(model_name(path), path)
  return found


def _is_of_another(name: str) -> bool:
  """Whether a file of this name is no model of its own: a part behind the first, or what lies beside a model."""
  part = part_name(name)
  return (part is not None and part.number > 1) or (is_gguf(name) and not is_weights_of_text(name))


def _children(folder: Path) -> list[Path]:
  """None of a folder that is gone, or that cannot be read."""
  try:
    return sorted(folder.iterdir())
  except OSError:
    return []


def model_files(path: Path) -> list[Path]:
  """The files of a local model that a reader could look at; those that have gone meanwhile included."""
  if not path.is_dir():
    return parts_of(path)
  usual = [file for file in _children(path) if file.name.lower().endswith(SUFFIXES) and not file.name.startswith("._")]
  return [file for file in usual if not is_gguf(file.name) or is_weights_of_text(file.name)]


def describe(model_id: str, path: Path, source: str, contents: KnownContents, revision: str = "") -> Manifest:
  """The files of a local model as others may fetch them. Its revision, where none is given, is a hash of their names and contents:
  equal copies have the same on every machine. Blocks; raises `ModelFilesError` for files that cannot be read.
  """
  base, files = path.parent if path.is_file() else path, model_files(path)
  found: list[RepoFile] = []
  for file in files:
    if not file.is_file() or not is_plain_name(file.name):
      continue
    entry = RepoFile(file.relative_to(base).as_posix(), file.stat().st_size, _cached_hash(file))
    if entry.is_weights or entry.size <= MAX_AUXILIARY_BYTES:
      found.append(entry if entry.sha256 else replace(entry, sample=contents.sample(file)))
  contained = digest_of(f"{file.name} {file.size} {file.sha256 or file.sample}" for file in found)
  return Manifest(model_id, source, revision or contained[:40], tuple(found))


def _cached_hash(file: Path) -> str | None:
  """huggingface_hub's cache links each large file to one that is named by its SHA-256."""
  name = file.readlink().name if file.is_symlink() else ""
  return name if _SHA256.fullmatch(name) else None
