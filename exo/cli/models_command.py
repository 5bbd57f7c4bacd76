"""`exo models`, `exo pull`, `exo rm`: what there is, bringing it here, and making room."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from exo.config import Config
from exo.download.model_state import ModelState, model_states
from exo.download.model_store import ModelStore
from exo.errors import ConfigError, ExoError
from exo.runtime_file import running_nodes
from exo.system_figures import memory

_MB, _GB = 2**20, 1e9
_ASK_S = 0.5


def models_command(config: Config, arguments: argparse.Namespace) -> int:
  """List every model; those on this machine first. Asks no network but a node of this machine."""
  store = ModelStore(config.exo_home, config.model_dirs, config.models)
  states = sorted(model_states(store), key=lambda state: not state.where)
  offered, nodes = asyncio.run(_ring_memory(config))
  if arguments.json:
    print(json.dumps([_as_json(state, offered) for state in states], indent=2))
    return 0
  rows: list[tuple[str, ...]] = [("MODEL", "LAYERS", "SIZE", "HERE", "FITS", "WHERE")]
  rows += [_row(state, offered) for state in states]
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
  for row in rows:
    print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1], sep="  ")
  whose = f"the {nodes} node(s) of the ring" if nodes else "this machine (no node runs here)"
  print(f"\nFITS: into the {offered / _GB:.1f} GB that {whose} can offer. Any Hugging Face id works too: "
        "exo pull org/name, exo run org/name:Q4_K_M", file=sys.stderr)  # yapf: disable
  if any(state.verified is False for state in states):
    print("unverified: came from other nodes, or was put there by hand, and nothing to compare it with could be reached",
          file=sys.stderr)  # yapf: disable
  return 0


def _row(state: ModelState, memory: int) -> tuple[str, ...]:
  fits = {True: "yes", False: "no", None: "?"}[state.fits(memory)]
  size = "?" if state.total_bytes is None else f"{state.total_bytes / _GB:.2f} GB"
  here = "yes" if state.is_whole else f"{100 * state.fraction:.0f} %" if state.where else "-"
  if state.verified is False:
    here += ", unverified"
  return state.id, str(state.layers or "?"), size, here, fits, state.where or state.source


def _as_json(state: ModelState, memory: int) -> dict[str, Any]:
  return {
      "id": state.id, "name": state.pretty_name, "layers": state.layers, "total_bytes": state.total_bytes,
      "held_bytes": state.held_bytes, "here": state.is_whole, "path": state.where or None, "source": state.source,
      "fits": state.fits(memory), "verified": state.verified
  }


async def _ring_memory(config: Config) -> tuple[int, int]:
  """(bytes that the ring offers, nodes in it); this machine's own memory and 0 where no node runs here."""
  from exo.cli.client import ApiClient
  for info in running_nodes(config.state_dir):
    try:
      async with asyncio.timeout(_ASK_S), ApiClient(info) as api:
        nodes = (await api.get("/v1/topology"))["nodes"]
        return sum(node["memory"] for node in nodes.values()) * _MB, len(nodes)
    except (ExoError, OSError, TimeoutError, KeyError):
      continue
  own = memory().total
  return min(own, config.max_memory * _MB) if config.max_memory else own, 0


def pull_command(config: Config, arguments: argparse.Namespace) -> int:
  """Fetch a whole model onto this machine, from neighbours first."""
  name = _named(arguments)
  if config.chatgpt_api_port is None:
    config = replace(config, chatgpt_api_port=0)
  return asyncio.run(_pull(config, name))


async def _pull(config: Config, name: str) -> int:
  from exo.cli.load_progress import LoadProgress
  from exo.cli.node_client import node_client
  async with node_client(config, name) as api:
    watching = asyncio.create_task(LoadProgress(api).run(), name="progress")
    try:
      answer = await api.post("/download", {"model": name, "wait": True})
    except asyncio.CancelledError:  # Ctrl-C: whoever downloads for us need not go on
      await api.delete(f"/download/{quote(name)}")
      raise
    finally:
      watching.cancel()
      await asyncio.gather(watching, return_exceptions=True)
  print(answer["message"])
  return 0


def rm_command(config: Config, arguments: argparse.Namespace) -> int:
  """Delete a model from this machine: through its nodes where some run, so that they let go of it."""
  return asyncio.run(_remove(config, _named(arguments)))


async def _remove(config: Config, name: str) -> int:
  from exo.cli.client import ApiClient, answers
  freed = None
  for info in running_nodes(config.state_dir):
    if await answers(info):
      async with ApiClient(info) as api:
        freed = (await api.delete(f"/models/{quote(name)}"))["freed_bytes"]
        break
  if freed is None:
    freed = await ModelStore(config.exo_home, config.model_dirs, config.models).delete(name)
  print(f"{name} is gone: {freed / _GB:.2f} GB freed")
  return 0


def _named(arguments: argparse.Namespace) -> str:
  name = arguments.model_name or arguments.run_model
  if not name:
    raise ConfigError(f"exo {arguments.command} needs the name of a model: `exo models` lists them")
  return str(name)
