"""What Linux lets this process have: the limits of its control group and of all above it, of either version.

A group's own limit says nothing of a smaller one above it, a container may see only a part of the tree, and swap does
not count: what is swapped out does not compute. Files that are missing or unreadable limit nothing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_UNLIMITED = 1 << 60  # version 1 writes the largest multiple of a page where there is no limit
_MOUNT = re.compile(r"^\S+ \S+ \S+ (?P<root>\S+) (?P<at>\S+) .* - (?P<type>cgroup2?) \S+ (?P<options>\S+)$")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
  """In bytes: what a group may hold, and what it holds and cannot give back at once."""
  limit: int
  used: int

  @property
  def free(self) -> int:
    return max(0, self.limit - self.used)


@functools.cache
def own_groups() -> ControlGroups:
  """Where they are is found out once; what they allow is read anew each time that it is asked."""
  return ControlGroups()


class ControlGroups:
  """The groups of this process. `root` is where the system's files are looked for."""
  def __init__(self, root: Path = Path("/")) -> None:
    self._root = root
    paths = dict(self._own_paths())
    self._of_memory, self._of_processors = [list(self._folders(name, paths)) for name in ("memory", "cpu")]

  def memory(self) -> list[MemoryLimit]:
    """Every limit that holds, nearest group first."""
    return [limit for folder, version in self._of_memory if (limit := _memory(folder, version)) is not None]

  def processors(self) -> float | None:
    """How many processors' time the least of the quotas gives; None where there is none."""
    quotas = [quota for folder, version in self._of_processors if (quota := _quota(folder, version)) is not None]
    return min(quotas, default=None)

  def _own_paths(self) -> Iterator[tuple[str, str]]:
    """(controller, path) by /proc/self/cgroup; the controller is "" for version 2, which has them all."""
    for line in _read(self._root / "proc/self/cgroup").splitlines():
      _, _, rest = line.partition(":")
      controllers, _, path = rest.partition(":")
      for controller in controllers.split(","):
        yield controller, path

  def _folders(self, controller: str, paths: Mapping[str, str]) -> Iterator[tuple[Path, int]]:
    """This process's group and those above it, as far as they can be seen, with the version of their files."""
    for line in _read(self._root / "proc/self/mountinfo").splitlines():
      mount = _MOUNT.match(line)
      if mount is None:
        continue
      version = 2 if mount["type"] == "cgroup2" else 1
      if version == 1 and controller not in mount["options"].split(","):
        continue
      path = paths.get("" if version == 2 else controller)
      if path is None:
        continue
      top = self._root / _unescaped(mount["at"]).lstrip("/")
      inside = _below(path, _unescaped(mount["root"]))
      for depth in range(len(inside), -1, -1):
        yield top.joinpath(*inside[:depth]), version


def _below(path: str, root: str) -> tuple[str, ...]:
  """The parts of a group's path below the part of the tree that is mounted. Where they have nothing in common (a
  container that sees its own group as the top), the mount is all that can be seen.
  """
  own, top = PurePosixPath(path), PurePosixPath(root)
  if ".." in own.parts or not own.is_relative_to(top):
    return ()
  return own.relative_to(top).parts


def _memory(folder: Path, version: int) -> MemoryLimit | None:
  if version == 2:
    limits = [_number(folder / "memory.max"), _number(folder / "memory.high")]
    used, prefix = _number(folder / "memory.current"), ""
  else:
    limits = [_number(folder / "memory.limit_in_bytes")]
    used, prefix = _number(folder / "memory.usage_in_bytes"), "total_"
  statistics = _statistics(folder / "memory.stat")
  limits.append(statistics.get("hierarchical_memory_limit"))  # also of groups that cannot be seen from here
  held = [limit for limit in limits if limit is not None and limit < _UNLIMITED]
  if not held:
    return None
  given_back = sum(statistics.get(f"{prefix}{name}", 0) for name in ("active_file", "inactive_file"))
  return MemoryLimit(min(held), max(0, (used or 0) - given_back))


def _quota(folder: Path, version: int) -> float | None:
  if version == 2:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
  else:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
  if not (quota + period).isascii() or not quota.isdigit() or not period.isdigit() or not int(quota) or not int(period):
    return None  # "max" and -1 are no limit
  return int(quota) / int(period)


def _number(path: Path) -> int | None:
  text = _read(path)
  return int(text) if text.isascii() and text.isdigit() else None


def _statistics(path: Path) -> dict[str, int]:
  pairs = (line.split() for line in _read(path).splitlines())
  return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isascii() and pair[1].isdigit()}


def _unescaped(path: str) -> str:
  """Blanks and their like are octal in /proc."""
  return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _read(path: Path) -> str:
  try:
    return path.read_text(errors="replace").strip()
  except OSError:
    return ""
