"""`exo`: a node that runs until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import sys

import exo
from exo.cli.assemble import RunningNode, running_node
from exo.config import DEFAULT_API_PORT, Config
from exo.log import say


async def serve(config: Config) -> int:
  """Start, say what is there, and run until SIGINT, SIGTERM or `POST /quit`. Returns the exit status."""
  stopping = asyncio.Event()
  loop = asyncio.get_running_loop()
  for number in (signal.SIGINT, signal.SIGTERM):
    loop.add_signal_handler(number, stopping.set)
  async with running_node(config, stopping.set) as running:
    _introduce(config, running)
    if config.wait_for_peers:
      await _wait_for_peers(config, running, stopping)
    await _until(stopping, config, running)
    say("stopping")
  return 0


async def _until(stopping: asyncio.Event, config: Config, running: RunningNode) -> None:
  """Wait for the end, with the terminal view where there is a terminal for it."""
  if config.disable_tui or not sys.stdout.isatty():
    await stopping.wait()
    return
  from exo.viz.topology_viz import TopologyViz
  view = asyncio.create_task(TopologyViz(running.node, running.info.api_url).run(), name="terminal view")
  ended = asyncio.create_task(stopping.wait(), name="stopping")
  await asyncio.wait({view, ended}, return_when=asyncio.FIRST_COMPLETED)
  for task in (view, ended):
    task.cancel()
  await asyncio.gather(view, ended, return_exceptions=True)


def _introduce(config: Config, running: RunningNode) -> None:
  node, info = running.node, running.info
  where = "this machine only" if config.chatgpt_api_host in (
      "127.0.0.1", "localhost", "::1"
  ) else "whoever can reach it"
  say(f"exo {exo.__version__}, node {node.node_id}: {node.hello.capabilities}")
  say(f"  engine  {node.engine.name} on {node.engine.device}, because {node.engine.reason}")
  say(f"  ring    {config.node_host}:{info.grpc_port} for other nodes, found by {_how_found(config)}")
  say("          no cluster key: anyone on this network can join")
  say(f"  API     {info.api_url} for {where}, model {config.default_model} where none is named")
  if config.chatgpt_api_port is None and info.api_port != DEFAULT_API_PORT:
    say(f"          (port {DEFAULT_API_PORT} is taken, so a free one was)")


def _how_found(config: Config) -> str:
  match config.discovery_module:
    case "manual":
      return f"the file {config.discovery_config_path}"
    case "none":
      return "nobody"
    case _:
      return f"UDP beacons on port {config.listen_port}"


async def _wait_for_peers(config: Config, running: RunningNode, stopping: asyncio.Event) -> None:
  say(f"waiting for {config.wait_for_peers} other node(s)")
  waiting = asyncio.create_task(running.node.wait_for_peers(config.wait_for_peers, float("inf")))
  stopped = asyncio.create_task(stopping.wait())
  await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
  for task in (waiting, stopped):
    task.cancel()
  await asyncio.gather(waiting, stopped, return_exceptions=True)
  if not stopping.is_set():
    say(f"{len(running.node.mesh.peers())} other node(s) are here")
