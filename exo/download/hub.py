"""Repositories on the Hugging Face hub, through `huggingface_hub` and its settings (HF_ENDPOINT, HF_TOKEN, offline)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from exo.errors import DownloadError
from exo.models import HubSource

_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_POLL_S = 0.5


async def fetch_repository(
    source: HubSource, folder: Path, parallel: int, progress: Callable[[int, int], None]
) -> Path:
  """Bring the repository's weights, configuration and tokenizer into `folder`; `progress` hears (bytes, total).

  Raises `DownloadError` with what to do.
  """
  sizes = await asyncio.to_thread(_sizes, source)
  total = sum(sizes.values())
  fetching = asyncio.create_task(asyncio.to_thread(_fetch, source, folder, parallel))
  try:
    while not (await asyncio.wait({fetching}, timeout=_POLL_S))[0]:
      progress(await asyncio.to_thread(_size_of, folder), total)
  finally:
    await asyncio.gather(fetching, return_exceptions=True)
  await fetching
  # the library answers with whatever is in the folder when it cannot reach the hub
  wrong = await asyncio.to_thread(_incomplete, folder, sizes)
  if wrong:
    raise DownloadError(f"{source.repo}: {wrong[0]} did not arrive whole; try again")
  return folder


def _size_of(folder: Path) -> int:
  return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _incomplete(folder: Path, sizes: dict[str, int]) -> list[str]:
  return [name for name, size in sizes.items() if not (file := folder / name).is_file() or file.stat().st_size != size]


def _sizes(source: HubSource) -> dict[str, int]:
  from fnmatch import fnmatch

  from huggingface_hub import HfApi
  try:
    info = HfApi().model_info(source.repo, files_metadata=True)
  except Exception as error:
    raise _explained(source, error) from error
  return {
      file.rfilename: file.size or 0
      for file in info.siblings or [] if any(fnmatch(file.rfilename, pattern) for pattern in _PATTERNS)
  }


def _fetch(source: HubSource, folder: Path, parallel: int) -> None:
  from huggingface_hub import snapshot_download
  from huggingface_hub.utils import disable_progress_bars
  disable_progress_bars()
  try:
    snapshot_download(source.repo, local_dir=folder, allow_patterns=_PATTERNS, max_workers=parallel)
  except Exception as error:
    raise _explained(source, error) from error


def _explained(source: HubSource, error: Exception) -> DownloadError:
  from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
  if isinstance(error, GatedRepoError):
    return DownloadError(f"{source.repo} asks for consent: accept its terms on the hub and set HF_TOKEN")
  if isinstance(error, RepositoryNotFoundError):
    return DownloadError(f"the hub has no repository {source.repo}, or it is private: check the name, or set HF_TOKEN")
  return DownloadError(f"{source.repo} could not be fetched: {type(error).__name__}: {error}")
