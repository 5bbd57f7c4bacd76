"""How the command line finds the nodes that run on this machine: one small private file each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from exo.private_files import write_private


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
  """A running node. `started` is its process's start, which tells it from another process with a reused pid.

  `token` stands for any API key on this machine: who can read the file is the user who started the node. `cluster` is the name of its cluster key.
  """
  pid: int
  started: float
  node_id: str
  api_host: str
  api_port: int
  grpc_port: int
  token: str = field(default="", repr=False)
  cluster: str = ""

  @property
  def api_url(self) -> str:
    host = "127.0.0.1" if self.api_host in ("0.0.0.0", "::", "") else self.api_host
    return f"http://[{host}]:{self.api_port}" if ":" in host else f"http://{host}:{self.api_port}"


def _folder(state_dir: Path) -> Path:
  return state_dir / "nodes"


def write_runtime_file(state_dir: Path, info: RuntimeInfo) -> Path:
  """With mode 0600, complete from the moment it has its name."""
  path = _folder(state_dir) / f"{info.pid}.json"
  write_private(path, json.dumps(asdict(info)))
  return path


def this_process_started() -> float:
  return float(psutil.Process().create_time())


def running_nodes(state_dir: Path) -> list[RuntimeInfo]:
  """The nodes of this machine that still run, oldest first; files that dead ones left are removed."""
  found = []
  for path in sorted(_folder(state_dir).glob("*.json")):
    try:
      info = RuntimeInfo(**json.loads(path.read_text()))
      if abs(psutil.Process(info.pid).create_time() - info.started) < 1:
        found.append(info)
        continue
    except (OSError, ValueError, TypeError, psutil.Error):
      pass
    path.unlink(missing_ok=True)
  return sorted(found, key=lambda info: info.started)
