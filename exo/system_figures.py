"""What this system tells of itself. Containers, phones and hidden `/proc`s tell less: what cannot be read is answered in
another way, or left out. Nothing here raises; what is missing is logged once, with what it costs.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from exo.control_groups import own_groups
from exo.log import log

T = TypeVar("T")

ASSUMED_MEMORY = 4 << 30  # bytes, of a machine that tells nothing


@dataclass(frozen=True, slots=True)
class Memory:
  """In bytes, of the machine or of the control groups that this process is in, where they allow less; `available` is what new
  work can have without swapping.
  """
  total: int
  available: int


_unreadable: dict[str, str] = {}


def unreadable() -> dict[str, str]:
  """What could not be read so far: by name, the reason and what it costs."""
  return dict(_unreadable)


def memory() -> Memory:
  """Of two figures that are missing, all of the memory counts as available."""
  found = _asked("memory", _psutil_memory, f"{ASSUMED_MEMORY >> 20} MB are assumed unless --max-memory says otherwise")
  found = found or Memory(ASSUMED_MEMORY, ASSUMED_MEMORY)
  limits = own_groups().memory()
  return Memory(
      min([found.total, *(limit.limit for limit in limits)]), min([found.available, *(limit.free for limit in limits)])
  )


def own_memory() -> int:
  """Bytes of memory that this process holds; 0 where the system does not tell."""
  return _asked("the memory of processes", _psutil_own_memory, "status shows none") or 0


def processors() -> int:
  """Those that this process may run on, or as many as the quotas of its control groups give it whole; at least one."""
  count = _asked("processors", _affinity, "all of the machine's are used") or _count() or 1
  quota = own_groups().processors()
  return count if quota is None else max(1, min(count, int(quota)))


def host_name() -> str:
  """"" where there is none."""
  return _asked("the host's name", socket.gethostname, "only addresses name this machine") or ""


def free_disk(path: Path) -> int | None:
  """Bytes free for this user where `path` lies; None where the file system does not tell."""
  return _asked(f"free space of {path}", lambda: _usage(path), "a full disk is noticed when it is full")


def open_files() -> int | None:
  """Files and sockets that this process may have open; None where there is no limit, or none is told."""
  return _asked("its limit of open files", _open_files, "it is taken for large") or None


def note_unreadable(what: str, error: Exception, cost: str) -> None:
  """For figures that are read elsewhere."""
  if what not in _unreadable:
    _unreadable[what] = f"{type(error).__name__}: {error}; {cost}"
    log(0, "this system does not tell %s (%s)", what, _unreadable[what])


def _asked(what: str, ask: Callable[[], T], cost: str) -> T | None:
  try:
    return ask()
  except Exception as error:  # noqa: BLE001 - libraries that parse what a system shows raise whatever comes of it
    note_unreadable(what, error, cost)
    return None


def _psutil_memory() -> Memory:
  try:
    import psutil
    found = psutil.virtual_memory()
    return Memory(int(found.total), int(found.available))
  except Exception:
    with contextlib.suppress(OSError, ValueError):  # from the kernel instead of its files
      total, free = (os.sysconf("SC_PAGE_SIZE") * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
      if total > 0:
        return Memory(total, max(free, 0))
    raise


def _psutil_own_memory() -> int:
  import psutil
  return int(psutil.Process().memory_info().rss)


def _affinity() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _count() -> int | None:
  with contextlib.suppress(OSError, NotImplementedError):
    return os.cpu_count()
  return None


def _open_files() -> int:
  soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  return 0 if soft == resource.RLIM_INFINITY else soft


def _usage(path: Path) -> int:
  usage = shutil.disk_usage(path)
  if usage.total <= 0:
    raise OSError("the file system gives no sizes")
  return usage.free
