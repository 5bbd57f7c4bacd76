"""What a model consists of: its files with sizes and hashes, and which of them are wanted.

Names, sizes and hashes come from strangers (a hub, a mirror, a peer); everything is checked here, once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from exo.errors import DownloadError, ModelFilesError
from exo.gguf_names import is_gguf, is_of_quantization, is_weights_of_text, model_stem, part_name, quantization_of
from exo.inference.weights.block_map import MAX_FILE_BYTES

WEIGHT_SUFFIXES = (".safetensors", ".gguf")
SUFFIXES = (*WEIGHT_SUFFIXES, ".json", ".txt", ".model", ".jinja")
INDEX = "model.safetensors.index.json"
MAX_AUXILIARY_BYTES = 64 * 2**20
_MAX_FILES = 20_000
_ONE_NAME = r"\w[\w\u0300-\u036f.+=@,()\- ]{0,199}"  # letters and digits of any language, some of which have their accents behind them
_NAME = re.compile(rf"{_ONE_NAME}(?:/{_ONE_NAME}){{0,7}}")
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,3}")
# of several quantizations in one repository, the first of these
_GGUF_PREFERENCE = (
    "Q4_K_M", "Q4_K_XL", "Q4_K_S", "Q4_0", "Q4_1", "MXFP4", "MXFP4_MOE", "IQ4_XS", "IQ4_NL", "Q5_K_M", "Q6_K", "Q8_0",
    "Q3_K_M", "Q3_K_XL", "Q2_K", "Q2_K_XL", "BF16", "F16", "F32"
)
_MOST_QUANTIZATIONS = 64
_QUANTIZATION = re.compile(r"[A-Z0-9_-]{2,24}")


def check_file_name(name: str) -> str:
  """The name itself. Raises `ModelFilesError` for one that could lead out of the model's folder or is no plain path."""
  if not is_plain_name(name):
    raise ModelFilesError(f"the repository names a file {str(name)[:80]!r}, which is no name that exo would write to")
  return name


def is_plain_name(name: Any) -> bool:
  return isinstance(name, str) and _NAME.fullmatch(name) is not None and ".." not in name


def is_hostile_name(name: Any) -> bool:
  """Whether no honest repository holds a file of this name: it climbs, is absolute, or is an address."""
  return not isinstance(name, str) or name.startswith(("/", "~")
                                                      ) or any(part in name for part in ("..", "\\", "\0", "//", ":"))


def inside(folder: Path, name: str) -> Path:
  """The file's path in `folder`, links followed. Raises `ModelFilesError` when that is somewhere else."""
  path = folder / check_file_name(name)
  if not path.resolve().is_relative_to(folder.resolve()):
    raise ModelFilesError(f"{name} lies outside the model's folder")
  return path


def check_revision(revision: str) -> str:
  """Raises `DownloadError` for what cannot be a branch, a tag or a commit."""
  if not _REVISION.fullmatch(revision) or ".." in revision:
    raise DownloadError(f"{revision[:80]!r} is not the name of a revision: give a branch, a tag or a commit")
  return revision


@dataclass(frozen=True, slots=True)
class RepoFile:
  """A file of a repository. `sha256` is known of large files, `git_oid` (SHA-1 of git's blob) of small ones, `sample`
  (`content_sample.py`) of the user's own.
  """
  name: str
  size: int
  sha256: str | None = None
  git_oid: str | None = None
  sample: str | None = None

  @property
  def is_weights(self) -> bool:
    return self.name.lower().endswith(WEIGHT_SUFFIXES)


@dataclass(frozen=True)
class Manifest:
  """All of a model's files that are wanted. `revision` tells versions apart (a commit, or a hash of a local model's contents).
  `quantizations` are those that the repository has as GGUF files, where its list was read; they are no part of the model.
  """
  model_id: str
  source: str
  revision: str
  files: tuple[RepoFile, ...]
  quantizations: tuple[str, ...] = field(default=(), compare=False)

  def file(self, name: str) -> RepoFile | None:
    return next((file for file in self.files if file.name == name), None)

  def identity(self, file: RepoFile) -> str:
    """What tells this version of a file from others, on every node: its hash, else the version of the model."""
    return file.sha256 or file.git_oid or file.sample or f"{self.source} {self.revision}"

  @property
  def weights(self) -> tuple[RepoFile, ...]:
    return tuple(file for file in self.files if file.is_weights)

  @property
  def auxiliary(self) -> tuple[RepoFile, ...]:
    """Configuration, tokenizer, templates: fetched whole, always."""
    return tuple(file for file in self.files if not file.is_weights)

  @property
  def total_bytes(self) -> int:
    return sum(file.size for file in self.files)

  @property
  def is_gguf(self) -> bool:
    return any(is_gguf(file.name) for file in self.files)

  def with_weights(self, names: Iterable[str]) -> Manifest:
    """The same with only these weight files."""
    keep = set(names)
    return replace(self, files=tuple(f for f in self.files if not f.is_weights or f.name in keep))

  def to_json(self) -> str:
    return json.dumps(asdict(self), separators=(",", ":"))


def manifest_from_json(text: str) -> Manifest:
  """Raises `ModelFilesError` for anything that is not a proper manifest."""
  try:
    value = json.loads(text)
    raw_files = value["files"]
    names = [value[key] for key in ("model_id", "source", "revision")]
    if not isinstance(raw_files, list) or len(raw_files) > _MAX_FILES:
      raise ValueError("files")
    files = tuple(
        checked_file(f["name"], f["size"], f.get("sha256"), f.get("git_oid"), f.get("sample")) for f in raw_files
    )
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise ModelFilesError("a model's list of files is malformed") from error
  if not all(isinstance(n, str) and 0 < len(n) <= 300 for n in names) or len({f.name for f in files}) != len(files):
    raise ModelFilesError("a model's list of files is malformed")
  return Manifest(names[0], names[1], names[2], files, _checked_quantizations(value.get("quantizations")))


def _checked_quantizations(value: Any) -> tuple[str, ...]:
  """None of a list that says something else: they are for people to read, and older nodes give none."""
  if not isinstance(value, list) or len(value) > _MOST_QUANTIZATIONS:
    return ()
  return tuple(name for name in value if isinstance(name, str) and _QUANTIZATION.fullmatch(name))


def quantizations_in(files: Iterable[RepoFile]) -> tuple[str, ...]:
  """Which quantizations a repository's GGUF files are, the smallest first."""
  n_bytes: dict[str, int] = {}
  for file in files:
    if is_weights_of_text(file.name) and (name := quantization_of(file.name)):
      n_bytes[name] = n_bytes.get(name, 0) + file.size
  return tuple(sorted(n_bytes, key=lambda name: (n_bytes[name], name)))[:_MOST_QUANTIZATIONS]


def checked_file(name: Any, size: Any, sha256: Any = None, git_oid: Any = None, sample: Any = None) -> RepoFile:
  """Raises `ModelFilesError`."""
  check_file_name(name)
  if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_FILE_BYTES:
    raise ModelFilesError(f"{name} is said to have {size!r} bytes")
  if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
    raise ModelFilesError(f"{name} comes with something that is no SHA-256")
  if git_oid is not None and not (isinstance(git_oid, str) and _SHA1.fullmatch(git_oid)):
    git_oid = None
  if sample is not None and not (isinstance(sample, str) and _SHA256.fullmatch(sample)):
    sample = None
  return RepoFile(name, size, sha256, git_oid, sample)


def wanted_files(repo: str, files: Iterable[RepoFile], variant: str | None) -> list[RepoFile]:
  """The files that make the model: safetensors with configuration and tokenizer, or one GGUF file, or all parts of one.

  `variant` chooses among GGUF files (`Q4_K_M`). Raises `DownloadError` when there are no weights that exo reads.
  """
  usable = [f for f in files if f.name.lower().endswith(SUFFIXES)]
  ggufs = sorted((f for f in usable if is_weights_of_text(f.name)), key=lambda f: f.name)
  root = [f for f in usable if "/" not in f.name]
  safetensors = [f for f in root if f.name.endswith(".safetensors")]
  if variant is None and safetensors:
    if any(f.name == "model.safetensors" for f in safetensors) and not any(f.name == INDEX for f in root):
      safetensors = [f for f in safetensors if f.name == "model.safetensors"]
    elif len(safetensors) > 1:
      safetensors = [f for f in safetensors if not f.name.startswith("consolidated")]
    templates = [f for f in usable if f.name.startswith("additional_chat_templates/")]
    small = [f for f in (*root, *templates) if not f.is_weights and f.size <= MAX_AUXILIARY_BYTES]
    return small + safetensors
  if not ggufs:
    what = f"no GGUF file {variant!r}" if variant else f"no weights that exo reads ({', '.join(WEIGHT_SUFFIXES)})"
    raise DownloadError(f"{repo} holds {what}: choose another repository")
  return _with_parts(repo, ggufs, _choose_gguf(repo, ggufs, variant))


def _with_parts(repo: str, ggufs: list[RepoFile], chosen: RepoFile) -> list[RepoFile]:
  part = part_name(chosen.name)
  if part is None:
    return [chosen]
  found = {file.name: file for file in ggufs}
  if missing := [name for name in part.all() if name not in found]:
    raise DownloadError(f"{repo}: of {chosen.name} and its parts {missing[0]} is missing: choose another file")
  return [found[name] for name in part.all()]


def _choose_gguf(repo: str, ggufs: list[RepoFile], variant: str | None) -> RepoFile:
  for kind in (variant, ) if variant else _GGUF_PREFERENCE:
    found = [f for f in ggufs if is_of_quantization(f.name, kind) or f.name == kind]
    if found:
      return found[0]
  models = sorted({model_stem(f.name) for f in ggufs})
  if variant is None and len(models) == 1:
    return ggufs[0]
  names = ", ".join(PurePosixPath(name).name for name in models[:6])
  raise DownloadError(f"{repo} holds several GGUF files ({names} …): name one as {repo}:Q8_0, say")
