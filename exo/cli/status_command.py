"""`exo status` and `exo stop`: the nodes that this user runs on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import time
from typing import Any

from exo.cli.client import ApiClient
from exo.cli.lan_address import lan_url
from exo.cli.parser import Parser
from exo.cli.qr_code import in_colours, qr_lines
from exo.cli.status_lines import status_lines
from exo.config import Config
from exo.errors import ExoError
from exo.node_names import called
from exo.runtime_file import RuntimeInfo, is_running, running_nodes

_ASK_S = 5.0
_STOP_S = 45.0  # longer than the time that requests under way are given
_SECOND_SIGNAL_S = 0.5
_NONE = "no node of yours runs on this machine: `exo` starts one"


def build_parser(command: str) -> Parser:
  about = {"status": "Show the nodes that you run on this machine and the rings they are in.", "stop": "Stop them."}
  parser = Parser(prog=f"exo {command}", description=about[command])
  parser.add_argument("node_id", nargs="?", metavar="NODE", help="only this one: its name or its id")
  if command == "status":
    parser.add_argument("--json", action="store_true", help="everything, for programs")
  else:
    parser.add_argument("--now", action="store_true", help="do not let requests under way finish")
  return parser


def status_command(config: Config, arguments: argparse.Namespace) -> int:
  """Print what runs; the exit status is 1 where nothing does."""
  nodes = _chosen(config, arguments.node_id)
  rings = asyncio.run(_ask_all(nodes))
  if arguments.json:
    found = [{
        "node_id": info.node_id, "name": info.name or info.node_id, "pid": info.pid, "api_url": info.api_url,
        "grpc_port": info.grpc_port, "ring": ring
    } for info, ring in zip(nodes, rings, strict=True)]
    print(json.dumps({"nodes": found}, indent=2))
  else:
    for info, ring in zip(nodes, rings, strict=True):
      print("\n".join(status_lines(info, ring, _width())))
      _print_code(info)
    if not nodes:
      print(_NONE)
  return 0 if nodes else 1


def stop_command(config: Config, arguments: argparse.Namespace) -> int:
  """Ask each to stop and wait until it has; 1 where one did not, or none was there."""
  nodes = _chosen(config, arguments.node_id)
  if not nodes:
    print(_NONE, file=sys.stderr)
    return 1
  for info in nodes:
    _signal(info)
  if arguments.now:
    time.sleep(_SECOND_SIGNAL_S)
    for info in nodes:
      _signal(info)
  deadline, failed = time.monotonic() + _STOP_S, False
  for info in nodes:
    while is_running(info) and time.monotonic() < deadline:
      time.sleep(0.05)
    if is_running(info):
      failed = True
      print(
          f"{called(info.node_id, info.name)} still runs (process {info.pid}): `exo stop --now` cuts its requests off",
          file=sys.stderr
      )
    else:
      print(f"{called(info.node_id, info.name)} has stopped")
  return int(failed)


def _width() -> int | None:
  """Of the terminal; None where there is none, and lines may be as long as they are."""
  return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _print_code(info: RuntimeInfo) -> None:
  """Of an API that others of the network can reach: what a phone's camera opens."""
  url = lan_url(info.api_host, info.api_port)
  if url is not None and sys.stdout.isatty():
    print("\n".join(in_colours(qr_lines(url))))


def _chosen(config: Config, name: str | None) -> list[RuntimeInfo]:
  """By id, or by what people call them. Raises `ExoError` for a node that is not there."""
  nodes = running_nodes(config.state_dir)
  if name is None:
    return nodes
  chosen = [info for info in nodes if info.node_id == name] or [info for info in nodes if name == info.name]
  if not chosen:
    here = ", ".join(called(info.node_id, info.name) for info in nodes) or "none"
    raise ExoError(f"no node {name} of yours runs on this machine (running: {here})")
  return chosen


def _signal(info: RuntimeInfo) -> None:
  if is_running(info):
    os.kill(info.pid, signal.SIGTERM)


async def _ask_all(nodes: list[RuntimeInfo]) -> list[dict[str, Any] | None]:
  return await asyncio.gather(*(_ask(info) for info in nodes))


async def _ask(info: RuntimeInfo) -> dict[str, Any] | None:
  """The node's picture of its ring, None where it does not answer."""
  try:
    async with asyncio.timeout(_ASK_S), ApiClient(info) as api:
      event: dict[str, Any] = await api.first_event("/v1/topology/stream")
      return event
  except (OSError, TimeoutError, ExoError, ValueError):
    return None
