"""`exo`: a node that runs until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import exo
from exo.cli.assemble import RunningNode, running_node
from exo.cli.introduction import Listeners, listener_lines
from exo.cli.lan_address import lan_url
from exo.cli.qr_code import in_colours, qr_lines
from exo.config import Config
from exo.errors import in_words
from exo.log import log, say
from exo.node_names import called
from exo.sizes import shown_mb
from exo.tasks import log_lost_errors

_QUIET_S = 0.3
_LAST_RESORT_S = 3.0


async def serve(config: Config) -> int:
  """Start, say what is there, and run until SIGINT, SIGTERM, SIGHUP or `POST /quit`. Returns the exit status.

  Then requests under way may finish within the grace period; a second signal ends that at once.
  """
  stopping, at_once = asyncio.Event(), asyncio.Event()
  loop = asyncio.get_running_loop()

  def on_signal() -> None:
    if stopping.is_set():
      at_once.set()
      loop.call_later(_LAST_RESORT_S, os._exit, 1)  # whatever hangs then
    stopping.set()

  log_lost_errors(loop)
  for number in (signal.SIGINT, signal.SIGTERM):
    loop.add_signal_handler(number, on_signal)
  if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else `nohup`: the node stays when its terminal goes
    loop.add_signal_handler(signal.SIGHUP, stopping.set)
  async with running_node(config, stopping.set) as running:
    _introduce(config, running)
    if config.wait_for_peers:
      await _wait_for_peers(config, running, stopping)
    await _until(stopping, config, running)
    await _drain(config, running, at_once)
    say("stopping")
  return 0


async def _drain(config: Config, running: RunningNode, at_once: asyncio.Event) -> None:
  draining = asyncio.create_task(running.node.drain(config.grace_period), name="drain")
  ended = asyncio.create_task(at_once.wait(), name="second signal")
  await asyncio.wait({draining, ended}, timeout=_QUIET_S, return_when=asyncio.FIRST_COMPLETED)
  if not draining.done() and not ended.done():
    say(f"finishing what runs here, for at most {config.grace_period:g} s; once more ends it at once")
    await asyncio.wait({draining, ended}, return_when=asyncio.FIRST_COMPLETED)
  for task in (draining, ended):
    task.cancel()
  await asyncio.gather(draining, ended, return_exceptions=True)


async def _until(stopping: asyncio.Event, config: Config, running: RunningNode) -> None:
  """Wait for the end, with the terminal view where there is a terminal for it."""
  if config.disable_tui or not sys.stdout.isatty():
    await stopping.wait()
    return
  from exo.viz.topology_viz import TopologyViz
  shared = lan_url(config.chatgpt_api_host, running.info.api_port)
  screen = TopologyViz(running.node, shared or running.info.api_url, qr_lines(shared) if shared else ())
  view = asyncio.create_task(screen.run(), name="terminal view")
  view.add_done_callback(_viewed)
  await stopping.wait()
  view.cancel()
  await asyncio.gather(view, return_exceptions=True)


def _viewed(view: asyncio.Task[None]) -> None:
  """A view that ends by itself leaves the node alone."""
  if not view.cancelled() and (error := view.exception()) is not None:
    log(0, "the terminal view has ended: %s", in_words(error))


def _introduce(config: Config, running: RunningNode) -> None:
  node, info = running.node, running.info
  say(f"exo {exo.__version__}, node {called(node.node_id, node.hello.name)}: {node.hello.capabilities}")
  if len(node.workers) == 1:
    others = ", ".join(node.hello.workers[0].usable[1:])
    say(
        f"  engine  {node.engine.name} on {node.engine.device}, because {node.engine.reason}" +
        (f"; for what it cannot run: {others}" if others else "")
    )
  else:
    for offer in node.hello.workers:
      say(f"  worker  {offer.name}: {', '.join(offer.usable)} on {offer.device}, {shown_mb(offer.memory_mb)}")
  cluster = None if running.keyring is None else running.keyring.current.name
  at = Listeners(info.grpc_port, info.api_url, info.api_port, running.api.keyed, cluster)
  for line in listener_lines(config, at):
    say(line)
  if (url := lan_url(config.chatgpt_api_host, info.api_port)) is not None:
    say(f"  phones  {url}")
    if sys.stdout.isatty() and config.disable_tui:
      for line in in_colours(qr_lines(url)):
        print(line)


async def _wait_for_peers(config: Config, running: RunningNode, stopping: asyncio.Event) -> None:
  say(f"waiting for {config.wait_for_peers} other node(s)")
  running.node.hold_back(f"{config.wait_for_peers} other node(s), as --wait-for-peers says")
  waiting = asyncio.create_task(running.node.wait_for_peers(config.wait_for_peers, float("inf")))
  stopped = asyncio.create_task(stopping.wait())
  await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
  for task in (waiting, stopped):
    task.cancel()
  await asyncio.gather(waiting, stopped, return_exceptions=True)
  running.node.hold_back("")
  if not stopping.is_set():
    say(f"{len(running.node.mesh.peers())} other node(s) are here")
