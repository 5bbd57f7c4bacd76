"""How the command line finds the nodes that run on this machine: one small private file each."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from exo.machine import Machine, process_started, this_machine
from exo.private_files import write_private

_SAME_S = 0.05


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
  """A running node. `started` is its process's start, as `process_started` tells it, which tells it from another process
  with a reused pid.

  `token` stands for any API key on this machine: who can read the file is the user who started the node. `cluster` is the name of its cluster key,
  `name` what people call it.
  """
  pid: int
  started: float
  node_id: str
  api_host: str
  api_port: int
  grpc_port: int
  token: str = field(default="", repr=False)
  cluster: str = ""
  name: str = ""

  @property
  def api_url(self) -> str:
    host = "127.0.0.1" if self.api_host in ("0.0.0.0", "::", "") else self.api_host
    return f"http://[{host}]:{self.api_port}" if ":" in host else f"http://{host}:{self.api_port}"


def runtime_path(state_dir: Path, pid: int, machine: Machine | None = None) -> Path:
  """The name says whose file it is, since machines and containers may share an EXO_HOME: host, machine, boot, process."""
  machine = machine or this_machine()
  return state_dir / "nodes" / f"{machine.host}_{machine.mark}_{machine.boot}_{machine.pids}_{pid}.json"


def write_runtime_file(state_dir: Path, info: RuntimeInfo) -> Path:
  """With mode 0600, complete from the moment it has its name."""
  path = runtime_path(state_dir, info.pid)
  write_private(path, json.dumps(asdict(info)))
  return path


def is_running(info: RuntimeInfo) -> bool:
  """The very process, not another one that has its number now. `info` must be of this machine."""
  started = process_started(info.pid)
  return started is not None and (not started or not info.started or abs(started - info.started) < _SAME_S)


def running_nodes(state_dir: Path) -> list[RuntimeInfo]:
  """The nodes of this machine that still run, oldest first.

  Files that its dead ones left, also before it was started anew, are removed; those of other machines and of containers,
  whose processes cannot be seen from here, are left to them.
  """
  here, found = this_machine(), []
  for path in sorted((state_dir / "nodes").glob("*.json")):
    parts = path.stem.rsplit("_", 4)
    if len(parts) != 5:
      continue
    host, mark, boot, pids, _ = parts
    if boot == here.boot and pids == here.pids and (boot != "0" or host == here.host):
      info = _read(path)
      if info is not None and is_running(info):
        found.append(info)
        continue
    elif mark != here.mark or boot == here.boot or "0" in (boot, here.boot):
      continue
    with contextlib.suppress(OSError):
      path.unlink()
  return sorted(found, key=lambda info: info.started)


def _read(path: Path) -> RuntimeInfo | None:
  try:
    return RuntimeInfo(**json.loads(path.read_text()))
  except (OSError, ValueError, TypeError):
    return None
