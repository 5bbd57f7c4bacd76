"""`exo status` and `exo stop`: the nodes that this user runs on this machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from typing import Any

from exo.cli.client import ApiClient
from exo.cli.parser import Parser
from exo.config import Config
from exo.errors import ExoError
from exo.log import escape
from exo.runtime_file import RuntimeInfo, is_running, running_nodes

_ASK_S = 5.0
_STOP_S = 45.0  # longer than the time that requests under way are given
_SECOND_SIGNAL_S = 0.5
_NONE = "no node of yours runs on this machine: `exo` starts one"


def build_parser(command: str) -> Parser:
  about = {"status": "Show the nodes that you run on this machine and the rings they are in.", "stop": "Stop them."}
  parser = Parser(prog=f"exo {command}", description=about[command])
  parser.add_argument("node_id", nargs="?", metavar="NODE", help="only this one")
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
        "node_id": info.node_id, "pid": info.pid, "api_url": info.api_url, "grpc_port": info.grpc_port, "ring": ring
    } for info, ring in zip(nodes, rings, strict=True)]
    print(json.dumps({"nodes": found}, indent=2))
  else:
    for info, ring in zip(nodes, rings, strict=True):
      print("\n".join(escape(line) for line in _lines(info, ring)))
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
      print(f"{info.node_id} still runs (process {info.pid}): `exo stop --now` cuts its requests off", file=sys.stderr)
    else:
      print(f"{info.node_id} has stopped")
  return int(failed)


def _chosen(config: Config, node_id: str | None) -> list[RuntimeInfo]:
  """Raises `ExoError` for a node that is not there."""
  nodes = running_nodes(config.state_dir)
  if node_id is None:
    return nodes
  chosen = [info for info in nodes if info.node_id == node_id]
  if not chosen:
    here = ", ".join(info.node_id for info in nodes) or "none"
    raise ExoError(f"no node {node_id} of yours runs on this machine (running: {here})")
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


def _lines(info: RuntimeInfo, ring: dict[str, Any] | None) -> list[str]:
  head = f"{info.node_id}: {info.api_url}, process {info.pid}"
  if ring is None:
    return [f"{head}, does not answer"]
  nodes, total, requests = ring["nodes"], ring["total"], ring["requests"]
  flops = f", {total['tflops']:g} TFLOPS" if total["tflops"] else ""
  count = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
  lines = [head, f"  ring      {count}, {_size(total['memory'])}{flops}"]
  for node_id, node in nodes.items():
    layers = _layers(node)
    link = next((e for e in ring["links"] if set(e["nodes"]) == {node_id, ring["node_id"]}), None)
    where = "this node" if node_id == ring["node_id"] else "no link" if link is None else _link(link)
    lines += [
        f"  {node_id:<10}{node['model']}, {node['chip']}; {node['engine']} on {node['device']}; {where}",
        f"            {_size(node['used_memory'])} used, {_size(node['free_memory'])} free of {_size(node['memory'])}; "
        f"load {node['load']:.0%}; {layers}",
        *_workers(node),
        *_memory(node),
        *(
            f"            {_of(w['name'], node)}loads {model}: {done:.0%}" for w in node.get("workers", ())
            for model, done in w.get("loading", {}).items()
        ),
        *(
            f"            {_of(a['worker'], node)}takes no part in {a['model']}: {a['reason']}"
            for a in node["ailments"]
        ),
    ]
  lines += [f"  loaded    {room['model']}: {room['words']}" for room in ring["loaded"]]
  for file in ring.get("files", ()):  # a node of an older version tells none
    lines.append(f"  file      {file['model']}: {_file(file)}{': ' if file['why'] else ''}{file['why']}")
  for model, givers in ring["unverified"].items():
    lines.append(f"  unverified {model}, from {', '.join(givers)}: not compared with the hub")
  speed = f", {requests['tokens_per_s']:g} tokens/s" if requests["tokens_per_s"] else ""
  lines += [f"  refused   {model}: {reason}" for model, reason in ring["refused_models"].items()]
  for model, told in ring.get("known_deviations", {}).items():
    lines += [f"  deviates  {model} on {deviation}" for deviation in told]
  lines += [f"  warning   {model}: {told}" for model, told in ring.get("warnings", {}).items()]
  exact = f", exact: {ring['exact']}" if "exact" in ring else ""  # a node of an older version tells nothing
  lines.append(f"  requests  {requests['own']} from here, {requests['waiting']} waiting{speed}{exact}")
  return lines


def _workers(node: dict[str, Any]) -> list[str]:
  """Its devices, where they are several."""
  if not _several(node):
    return []
  return [
      f"            {w['name']}: {', '.join(w['engines'])} on {w['device']}, {_size(w['used_memory'])} used of "
      f"{_size(w['memory'])}; {_layers(w)}{'; ' if w['problem'] else ''}{w['problem']}" for w in node["workers"]
  ]


def _memory(node: dict[str, Any]) -> list[str]:
  """What its devices hold and by which engine, beside what was planned."""
  lines = []
  for worker in node.get("workers", ()):
    for shard in worker.get("loaded", ()):  # a node of an older version tells none
      planned, measured = shard["planned_memory"], shard["measured_memory"]
      by = f" on {shard['engine']}" if shard.get("engine") else ""
      lines.append(
          f"            {_layers({'layers': [shard]})}{by}: {measured['held']} MB when loaded (plan, with caches: "
          f"{planned['held']}), at most {measured['loading']} MB while loading (plan: {planned['loading']})"
      )
  return lines


def _several(node: dict[str, Any]) -> bool:
  return len(node.get("workers", ())) > 1  # a node of an older version tells none


def _of(worker: str, node: dict[str, Any]) -> str:
  return f"{worker} " if _several(node) else ""


def _file(file: dict[str, Any]) -> str:
  where = f" of {file['repository']}@{file['revision'][:12]}" if file["repository"] else ""
  return f"{file['name']}{where} ({file['key']})"


def _layers(holder: dict[str, Any]) -> str:
  return ", ".join(f"{s['model']} {s['start_layer']}-{s['end_layer']}" for s in holder["layers"]) or "no layers"


def _link(link: dict[str, Any]) -> str:
  return " ".join(part for part in (f"{link['rtt_ms']:g} ms" if link["rtt_ms"] else "", link["interface"]) if part)


def _size(mb: int) -> str:
  return f"{mb} MB" if mb < 1024 else f"{mb / 1024:.1f} GB"
