"""Which files a node has of a model: what it tells of them, and whether they are those that a plan runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from exo.download.content_sample import KnownContents
from exo.download.manifest import RepoFile
from exo.download.model_library import LOCAL, Holding
from exo.errors import ModelFilesError
from exo.inference.model_config import ModelConfig
from exo.inference.weights.checkpoint import Checkpoint
from exo.inference.weights.gguf_checkpoint import gguf_type
from exo.model_file import ModelFile, digest_of


def file_of(checkpoint: Checkpoint, holding: Holding | None, contents: KnownContents, *, whole: bool) -> ModelFile:
  """Of an opened model; `whole`: all of its weights are here. Blocks; raises `ModelFilesError`."""
  if holding is None:  # a model without files
    return ModelFile(checkpoint.fingerprint, name=checkpoint.path.name)
  files = _weights(checkpoint, holding)
  samples = [_sample(file, holding.path(file.name), contents, whole=whole) for file in files]
  manifest = holding.manifest
  source = "" if manifest.source == LOCAL else manifest.source
  hashes = [file.sha256 or file.git_oid or "" for file in files]
  return ModelFile(
      checkpoint.fingerprint,
      _together(files, hashes) or _told(files, source, manifest.revision), _together(files, samples), source,
      manifest.revision, files[0].name, sum(file.size for file in files), _shape(checkpoint.config)
  )


def _shape(config: ModelConfig) -> str:
  return f"{gguf_type(config.model_type)} {config.n_layers}x{config.hidden_size}x{config.n_heads}"


def comparable(
    own: ModelFile, other: ModelFile, checkpoint: Checkpoint, holding: Holding, contents: KnownContents
) -> ModelFile:
  """The same, all of which is here, with what there is to know of `other`. Blocks for as long as it takes to read the files where
  that is their hashes; raises `ModelFilesError`."""
  files = _weights(checkpoint, holding)
  if other.hashes and not own.hashes:
    return replace(own, hashes=_together(files, [contents.whole_hash(holding.path(file.name)) for file in files]))
  samples = [_sample(file, holding.path(file.name), contents, whole=True) for file in files]
  return replace(own, sample=_together(files, samples))


def _weights(checkpoint: Checkpoint, holding: Holding) -> list[RepoFile]:
  """The files that hold its tensors."""
  paths = {path for name in checkpoint.names() for path, _, _ in checkpoint.spans(name)}
  return [_listed(path, holding) for path in sorted(paths)]


def _listed(path: Path, holding: Holding) -> RepoFile:
  file = holding.manifest.file(path.relative_to(holding.base).as_posix())
  if file is None:
    raise ModelFilesError(f"{path.name} is not among the files of {holding.manifest.model_id}")
  return file


def _sample(file: RepoFile, path: Path, contents: KnownContents, *, whole: bool) -> str:
  return file.sample or (contents.sample(path) if whole else "")


def _together(files: list[RepoFile], hashes: list[str]) -> str:
  """Of all files, whatever they are called; "" where one is not known."""
  if not all(hashes):
    return ""
  return digest_of(sorted(f"{file.size} {told}" for file, told in zip(files, hashes, strict=True)))


def _told(files: list[RepoFile], source: str, revision: str) -> str:
  """What there is where a repository tells no hashes."""
  return digest_of((source, revision, *(f"{file.name} {file.size}" for file in files))) if source else ""
