"""`exo doctor`: what keeps this machine from being a good node, in one screen."""

from __future__ import annotations

import asyncio
import json
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import exo
from exo.api.keys import check_given
from exo.cli.client import ApiClient
from exo.cli.engine_command import comparison_lines, library_lines
from exo.config import DEFAULT_API_PORT, Config, named_llama_cpp
from exo.control_groups import own_groups
from exo.download.file_system import lacks
from exo.download.hub_check import look_at_hub
from exo.download.model_store import ModelStore
from exo.errors import ExoError
from exo.inference.engines import offered_engines
from exo.inference.llama_cpp.library_choice import libraries
from exo.log import escape
from exo.networking.cluster_key import default_key_file
from exo.networking.udp.interfaces import list_interfaces
from exo.private_files import private_folder
from exo.runtime_file import RuntimeInfo, running_nodes
from exo.sizes import shown_bytes
from exo.system_figures import free_disk, host_name, memory, own_memory, processors, unreadable
from exo.topology.slow_links import slow_link_hint

_ASK_S = 5.0
_LOW_DISK_MB = 2048
_SHOWN_REFUSALS = 5
_BUILT = 1767225600.0  # 2026: earlier than that it cannot be

Level = Literal["ok", "note", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
  """One line. What is wrong is a `FAIL`, which makes the exit status 1; a `note` is worth knowing where all is well."""
  level: Level
  topic: str
  text: str


def doctor_command(config: Config, as_json: bool = False) -> int:
  """Print all findings; 1 if something is broken."""
  if as_json:
    found = [finding for check in _CHECKS for finding in _guarded(check, config)]
    is_wrong = any(finding.level == "FAIL" for finding in found)
    told = [{"level": finding.level.lower(), "topic": finding.topic, "text": finding.text} for finding in found]
    print(json.dumps({"version": exo.__version__, "ok": not is_wrong, "findings": told}, indent=2))
    return int(is_wrong)
  print(f"exo {exo.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
  failed = noted = 0
  topic = ""
  for check in _CHECKS:
    for finding in _guarded(check, config):
      shown = finding.topic if finding.topic != topic else ""
      topic = finding.topic
      failed += finding.level == "FAIL"
      noted += finding.level == "note"
      print(escape(f"  {'' if finding.level == 'ok' else finding.level:4s} {shown:10s} {finding.text}"))
  if failed:
    print(f"something is wrong: see FAIL above ({failed})")
  else:
    print(f"nothing is wrong; see note above ({noted})" if noted else "all is well")
  return 1 if failed else 0


def _guarded(check: Callable[[Config], Iterator[Finding]], config: Config) -> Iterator[Finding]:
  try:
    yield from check(config)
  except ExoError as error:
    yield Finding("FAIL", check.__name__.strip("_"), str(error))
  except (OSError, ValueError, subprocess.SubprocessError) as error:
    yield Finding("note", check.__name__.strip("_"), f"could not be looked at: {error}")


def _engines(config: Config) -> Iterator[Finding]:
  first, *others = offered_engines(config.inference_engine, config.quantize)
  yield Finding("ok", "engines", f"{first.name} on {first.device} comes first, because {first.reason}")
  for offer in others:
    state = f"can run on {offer.device}: {offer.reason}" if offer.available else offer.missing
    yield Finding("ok", "engines", f"{offer.name} {state}")


def _llama_cpp(config: Config) -> Iterator[Finding]:
  """Its libraries, of which a named one has to work."""
  found = list(libraries())
  is_named = named_llama_cpp() is not None
  for line in library_lines(found):
    level: Level = "ok" if not line.startswith("put aside") else "FAIL" if is_named else "note"
    yield Finding(level, "llama.cpp", line)
  for line in comparison_lines(found):
    yield Finding("ok", "llama.cpp", line)


def _memory(config: Config) -> Iterator[Finding]:
  found = memory()
  limited = ", which is what its control groups allow it" if own_groups().memory() else ""
  text = f"{shown_bytes(found.total)}, {shown_bytes(found.available)} of them free{limited}; {processors()} processors"
  yield Finding("ok", "memory", text)


def _figures(config: Config) -> Iterator[Finding]:
  """What a node needs of the system and does not get; the checks before this one have asked for some of it."""
  processors()
  own_memory()
  host_name()
  for what, why in unreadable().items():
    yield Finding("note", "system", f"does not tell {what} ({why})")


def _interfaces(config: Config) -> Iterator[Finding]:
  if not _own_address():
    yield Finding(
        "FAIL", "interfaces",
        "127.0.0.1 cannot be reached, hence no node's API: bring the loopback interface up (ip link set lo up)"
    )
  interfaces = list_interfaces()
  for found in interfaces:
    used = not config.interface_type_filter or found.kind in config.interface_type_filter
    yield Finding("ok", "interfaces", f"{found.name} {found.kind} {found.address}{'' if used else ', filtered out'}")
  if all(found.kind == "loopback" for found in interfaces):
    yield Finding("FAIL", "interfaces", "no network but this machine's own: no other machine can be found")


def _own_address() -> bool:
  """Whether this machine reaches itself."""
  with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening, socket.socket() as asking:
    try:
      listening.bind(("127.0.0.1", 0))
      listening.listen(1)
      asking.settimeout(_ASK_S)
      asking.connect(listening.getsockname())
    except OSError:
      return False
  return True


def _ports(config: Config) -> Iterator[Finding]:
  own = {port for info in running_nodes(config.state_dir) for port in (info.api_port, info.grpc_port)}
  api = config.chatgpt_api_port or DEFAULT_API_PORT
  if api in own:
    yield Finding("ok", "ports", f"TCP {api} (API) is a running node's")
  elif _taken(socket.SOCK_STREAM, api):
    level: Level = "FAIL" if config.chatgpt_api_port else "note"
    yield Finding(level, "ports", f"TCP {api} (API) is taken by another program: choose another --chatgpt-api-port")
  else:
    yield Finding("ok", "ports", f"TCP {api} (API) is free")
  if config.discovery_module == "udp":
    if _taken(socket.SOCK_DGRAM, config.listen_port):
      yield Finding(
          "FAIL", "ports",
          f"UDP {config.listen_port} (beacons) is taken by another program: choose another --listen-port"
      )
    else:
      yield Finding("ok", "ports", f"UDP {config.listen_port} (beacons) can be listened on")


def _taken(kind: int, port: int) -> bool:
  """Whether a node could not bind the port; nodes share UDP ports with each other."""
  with socket.socket(socket.AF_INET, kind) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind == socket.SOCK_DGRAM and hasattr(socket, "SO_REUSEPORT"):
      sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
      sock.bind(("", port) if kind == socket.SOCK_DGRAM else ("127.0.0.1", port))
    except OSError:
      return True
  return False


def _command(*argv: str) -> str:
  """What a program of the system says; "" where there is none."""
  if shutil.which(argv[0]) is None:
    return ""
  return subprocess.run(argv, capture_output=True, text=True, timeout=_ASK_S, check=False).stdout


def _firewall(config: Config) -> Iterator[Finding]:
  port = config.listen_port
  if sys.platform == "darwin":
    said = _command("/usr/libexec/ApplicationFirewall/socketfilterfw", "--getglobalstate")
    if "enabled" in said:
      yield Finding("note", "firewall", "macOS's firewall is on: allow incoming connections for Python when it asks")
      return
  elif "Status: active" in _command("ufw", "status"):
    yield Finding("note", "firewall", f"ufw is on: `ufw allow {port}/udp`, and --node-port N with `ufw allow N/tcp`")
    return
  elif "running" in _command("firewall-cmd", "--state"):
    yield Finding(
        "note", "firewall", f"firewalld is on: `firewall-cmd --add-port={port}/udp`, and the same for --node-port"
    )
    return
  elif "drop" in (rules := _command("nft", "list", "ruleset")) and "hook input" in rules:
    yield Finding(
        "note", "firewall", f"nftables drops some of what comes in: let UDP {port} and the --node-port through"
    )
    return
  yield Finding("ok", "firewall", "none that is known")


def _clock(config: Config) -> Iterator[Finding]:
  """Datagrams under a cluster key are good for 30 seconds."""
  now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
  if time.time() < _BUILT:
    text = f"{now} is in the past: no certificate is valid yet, and with a cluster key no other node is heard; set it"
    yield Finding("FAIL", "clock", text)
  elif "NTPSynchronized=no" in _command("timedatectl", "show", "-p", "NTPSynchronized"):
    text = f"{now}, not synchronized: with a cluster key nodes must agree within 30 s"
    yield Finding("FAIL" if _has_cluster_key(config) else "note", "clock", text)
  else:
    yield Finding("ok", "clock", now)


def _keys(config: Config) -> Iterator[Finding]:
  """A node that would not start for its API key."""
  check_given(config.api_key)
  yield from ()


def _hub(config: Config) -> Iterator[Finding]:
  """Models come from there when no node has them. Without a network that is so, and nothing is wrong."""
  state = asyncio.run(look_at_hub(_ASK_S))
  level: Level = "FAIL" if state.broken else "ok" if state.reachable else "note"
  yield Finding(level, "hub", state.text)


def _has_cluster_key(config: Config) -> bool:
  return bool(config.cluster_key or config.cluster_key_file) or default_key_file(config).exists()


def _models(config: Config) -> Iterator[Finding]:
  home = config.exo_home
  for folder in (home, config.state_dir):
    if (problem := _unusable(folder)) is not None:
      yield Finding(
          "FAIL", "models",
          f"{folder} cannot be written ({problem}): point EXO_HOME to a folder that this user may write"
      )
      return
  free = free_disk(home)
  room = "unknown space" if free is None else f"{shown_bytes(free)} free"
  store = ModelStore(home, config.model_dirs)
  names = [entry.id for entry in store.listed() if entry.path is not None]
  held = f"{len(names)} models: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}" if names else "no models yet"
  low = ", which is little: models need GBs" if free is not None and free < _LOW_DISK_MB * 2**20 else ""
  yield Finding("FAIL" if low else "ok", "models", f"{home}, {room}{low}, {held}")
  for note in store.registry.notes:
    yield Finding("FAIL", "models", note)


def _unusable(folder: Path) -> str | None:
  """Why no file can be made in a folder, which is made where it is missing; None where one can."""
  try:
    private_folder(folder)
    probe = folder / ".doctor"
    probe.write_text("exo")
    probe.unlink()
  except OSError as error:
    return error.strerror or str(error)
  return None


def _files(config: Config) -> Iterator[Finding]:
  for lack in lacks(config.exo_home):
    yield Finding("note", "files", f"the file system of {config.exo_home} has {lack}")


def _nodes(config: Config) -> Iterator[Finding]:
  nodes = running_nodes(config.state_dir)
  if not nodes:
    yield Finding("ok", "nodes", "none runs here now: `exo` starts one, and this shows its peers then")
  for info in nodes:
    try:
      ring, problem = asyncio.run(asyncio.wait_for(_ask(info), _ASK_S))
    except (ExoError, OSError, TimeoutError) as error:
      yield Finding("FAIL", "nodes", f"{info.node_id} (pid {info.pid}) does not answer at {info.api_url}: {error}")
      continue
    yield Finding("FAIL" if problem else "ok", "nodes", f"{info.node_id} at {info.api_url} {problem or 'is healthy'}")
    yield from _ring(info.node_id, ring)


async def _ask(info: RuntimeInfo) -> tuple[Any, str]:
  async with ApiClient(info) as api:
    try:
      await api.get("/healthcheck")
      problem = ""
    except ExoError as error:
      problem = f"is not healthy: {error}"
    return await api.get("/v1/topology"), problem


def _ring(node_id: str, ring: Any) -> Iterator[Finding]:
  for other, peer in sorted(ring["nodes"].items()):
    if other != node_id:
      route = f"{peer.get('address', '?')} by {peer.get('interface') or '?'}"
      doubt = ", not heard for a while" if peer.get("suspect") else ""
      yield Finding("FAIL" if doubt else "ok", "peers", f"{other} at {route}, {peer.get('rtt_ms', 0):.1f} ms{doubt}")
  if len(ring["nodes"]) == 1:
    yield Finding("ok", "peers", f"{node_id} has none")
  problems = ring.get("problems", [])
  for text in problems[-_SHOWN_REFUSALS:]:
    yield Finding("FAIL", "refused", text)
  for text in [text for text in ring.get("refused", []) if text not in problems][-_SHOWN_REFUSALS:]:
    yield Finding("note", "refused", text)
  for plan in ring["plans"]:
    pace = plan.get("times")
    if pace and (hint := slow_link_hint(pace["lap_ms"], pace["compute_ms"])):
      yield Finding("note", "speed", f"{plan['model']}: {hint}")


_CHECKS = (
    _engines, _llama_cpp, _memory, _interfaces, _ports, _firewall, _clock, _keys, _hub, _models, _files, _nodes,
    _figures
)
