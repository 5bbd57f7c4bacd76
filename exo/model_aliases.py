"""Other names of models: `--model-alias FROM=TO`, and the lines of a file in EXO_HOME."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from exo.errors import ConfigError, ExoError, InvalidRequestError
from exo.log import log

MAX_ALIASES = 1024
_MAX_BYTES = 256 * 1024
_NAME = re.compile(r"[^\s=]{1,200}")
_REFRESH_S = 1.0


def parse_alias(text: str) -> tuple[str, str]:
  """(FROM, TO) of "FROM=TO"; FROM may have `*` for any characters. Raises `ConfigError`."""
  name, sign, target = (part.strip() for part in text.partition("="))
  if not sign or not _NAME.fullmatch(name) or not _NAME.fullmatch(target) or "*" in target or not name.strip("*"):
    raise ConfigError(
        f"--model-alias {text[:100]!r} must be FROM=TO, names without spaces, as claude-*=llama-3.2-3b; * stands in FROM only"
    )
  return name, target


def aliases_file(state_dir: Path) -> Path:
  """A line FROM=TO for each; what begins with # is a remark."""
  return state_dir / "aliases"


class ModelAliases:
  """`configured` as `--model-alias` says; the file may be changed by hand at any time. Whole names count before patterns."""
  def __init__(self, configured: Sequence[str], file: Path) -> None:
    self._configured = [parse_alias(text) for text in configured]
    self._file = file
    self._lock = threading.Lock()
    self._stamp: tuple[int, int] | None = None
    self._looked_at = float("-inf")
    self._kept: list[tuple[str, str]] = []

  def target(self, name: str) -> str | None:
    """What `name` stands for, None where it is no alias."""
    known = [*self._configured, *self._of_file()]
    whole = next((to for of, to in known if of == name), None)
    return whole or next((to for of, to in known if "*" in of and fnmatchcase(name, of.replace("[", "[[]"))), None)

  def listed(self) -> dict[str, str]:
    """Those that are whole names, with what they stand for."""
    return {of: to for of, to in reversed([*self._configured, *self._of_file()]) if "*" not in of}

  def add(self, name: str, target: str) -> None:
    """Keep another name, in place of what it stood for before. Blocks. Raises `InvalidRequestError`, `ExoError` for a disk that is full."""
    try:
      alias = parse_alias(f"{name}={target}")
    except ConfigError:
      raise InvalidRequestError(f"{name[:100]!r} cannot be a model's name: no spaces, no =") from None
    if "*" in name or any(of == name for of, _ in self._configured):
      raise InvalidRequestError(f"{name[:100]!r} is --model-alias's, or a pattern: it cannot be given here")
    with self._lock:
      kept = [(of, to) for of, to in self._read() if of != name]
      if len(kept) >= MAX_ALIASES:
        raise InvalidRequestError(f"there are {MAX_ALIASES} aliases already: delete one")
      self._write([*kept, alias])

  def remove(self, name: str) -> bool:
    """Whether there was one in the file. Blocks."""
    with self._lock:
      known = self._read()
      kept = [(of, to) for of, to in known if of != name]
      if len(kept) < len(known):
        self._write(kept)
      return len(kept) < len(known)

  def _of_file(self) -> list[tuple[str, str]]:
    now = time.monotonic()
    if now - self._looked_at < _REFRESH_S:
      return self._kept
    self._looked_at = now
    try:
      status = self._file.stat()
      stamp = status.st_mtime_ns, status.st_size
    except OSError:
      stamp = None
    if stamp != self._stamp:
      self._stamp, self._kept = stamp, self._read()
    return self._kept

  def _read(self) -> list[tuple[str, str]]:
    try:
      with self._file.open("rb") as file:
        lines = file.read(_MAX_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
      return []
    found: list[tuple[str, str]] = []
    for line in lines[:MAX_ALIASES]:
      if (line := line.strip()) and not line.startswith("#"):
        try:
          found.append(parse_alias(line))
        except ConfigError:
          log(0, "%s: %r is not FROM=TO, and counts for nothing", self._file.name, line[:100])
    return found

  def _write(self, aliases: Sequence[tuple[str, str]]) -> None:
    text = "".join(f"{of}={to}\n" for of, to in aliases)
    beside = self._file.with_name(f"{self._file.name}.{os.getpid()}.new")
    try:
      beside.write_text(text)
      beside.chmod(0o600)
      beside.replace(self._file)
    except OSError as error:
      beside.unlink(missing_ok=True)
      raise ExoError(f"the alias cannot be kept: {error.strerror}") from error
    self._looked_at = float("-inf")
