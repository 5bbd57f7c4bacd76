"""Which machine this is, and since when a process of it runs: told from others that share its files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from exo.system_figures import host_name

_ASK_S = 3.0


@dataclass(frozen=True, slots=True)
class Machine:
  """`mark` is the same after a restart of the machine, `boot` is not. `pids` names the set of processes that this one can
  see: containers of one machine have numbers of their own.

  What the system does not tell is "0"; machines that tell nothing are told apart by their `host` name alone.
  """
  host: str
  mark: str
  boot: str
  pids: str


@functools.cache
def this_machine() -> Machine:
  host = re.sub(r"[^A-Za-z0-9-]+", "-", host_name())[:40].strip("-") or "host"
  if sys.platform == "darwin":  # its name follows the network that it is in
    return Machine(host, _digest(str(uuid.getnode())), _asked("sysctl", "-n", "kern.bootsessionuuid"), "0")
  known = _read("/etc/machine-id") or _read("/var/lib/dbus/machine-id")
  try:
    pids = str(Path("/proc/self/ns/pid").stat().st_ino)
  except OSError:
    pids = "0"
  return Machine(host, _digest(f"{host} {known}"), _hex(_read("/proc/sys/kernel/random/boot_id")), pids)


@functools.cache
def processor_mark() -> str:
  """The same for processors that compute alike: their name and instructions."""
  lines = _read("/proc/cpuinfo").split("\n\n", 1)[0].splitlines()
  wanted = ("model name", "flags", "Features", "CPU part", "CPU implementer")
  said = [line for line in lines if line.split("\t", 1)[0].strip(" :") in wanted]
  if not said and sys.platform == "darwin":
    said = [_asked("sysctl", "-n", "machdep.cpu.brand_string")]
  return _digest(" ".join([platform.machine(), platform.processor(), *said]))


def process_started(pid: int) -> float | None:
  """When a process of this machine began, in seconds of a clock that nobody sets where there is one; 0 where the system
  does not tell. None when there is no such process, or only what is left of one that nobody has waited for.
  """
  with contextlib.suppress(OSError, ValueError, IndexError):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19]) / os.sysconf("SC_CLK_TCK")
  try:
    import psutil
    process = psutil.Process(pid)
    return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
  except Exception:  # noqa: BLE001 - where this does not work at all the process may be there nevertheless
    return 0.0 if _is_there(pid) else None


def _is_there(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except OSError:
    pass
  return True


def _digest(text: str) -> str:
  """Ids of machines are not to be shown to others as they are."""
  return hashlib.sha256(f"exo {text}".encode()).hexdigest()[:12]


def _hex(text: str) -> str:
  return re.sub(r"[^0-9a-f]", "", text.lower()) or "0"


def _read(path: str) -> str:
  try:
    return Path(path).read_text(errors="replace").strip()
  except OSError:
    return ""


def _asked(*argv: str) -> str:
  if shutil.which(argv[0]) is None:
    return "0"
  try:
    return _hex(subprocess.run(argv, capture_output=True, text=True, timeout=_ASK_S, check=False).stdout)
  except (OSError, subprocess.SubprocessError):
    return "0"
