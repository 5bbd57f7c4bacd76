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
from exo.download.model_store import ModelStore
from exo.errors import EngineUnavailableError, ExoError
from exo.inference.engines import offered_engines
from exo.log import escape
from exo.model_card import FORMATS
from exo.orchestration.form_choice import FormChoice
from exo.orchestration.listed_model import ListedModel, ModelJudge
from exo.orchestration.model_fit import RingWorker
from exo.orchestration.model_profiles import ModelProfiles
from exo.orchestration.sense_check import gains_kept, warnings_of
from exo.runtime_file import running_nodes
from exo.sizes import shown_bytes
from exo.system_figures import memory
from exo.topology.fit import Fit, Where
from exo.topology.loaded_for import LoadedFor
from exo.topology.placements import load_strategy
from exo.topology.ring_state import WorkerState
from exo.worker.devices import engines_by_device, offers_mb

_MB = 2**20
_ASK_S = 2.0


def models_command(config: Config, arguments: argparse.Namespace) -> int:
  """List every model; those on this machine first; or one by its name, in all forms in which it can be had. Asks no network but a
  node of this machine."""
  judge = _alone(config)
  if arguments.model_name:
    models = _in_all_forms(judge, arguments.model_name)
  else:
    models = sorted(map(judge.listed, judge.profiles.store.listed()), key=lambda model: not model.state.where)
  by_ring = asyncio.run(_fits_of_ring(config))
  models = [replace(model, fit=(by_ring or {}).get(model.id, model.fit)) for model in models]
  if arguments.json:
    print(json.dumps([_as_json(model) for model in models], indent=2))
    return 0
  rows: list[tuple[str, ...]] = [("MODEL", "LAYERS", "TAKES", "SIZE", "HERE", "WHERE", "ALSO AS", "FITS"),
                                 *map(_row, models)]
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
  for row in rows:
    print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1], sep="  ")
  whose = "by the ring as it is now" if by_ring is not None else "by this machine alone (no node of it answers)"
  print(f"\nTAKES: what is here of a model, else what would be fetched here; ALSO AS: what may stand behind its name (NAME:Q8_0), all of "
        f"which `exo models NAME` shows\nFITS: with its KV cache, {whose}. Any Hugging Face id works too: exo pull org/name, "
        "exo run org/name:Q4_K_M", file=sys.stderr)  # yapf: disable
  if any(model.state.made_bytes for model in models):
    print("made: files that llama.cpp needs of the model beside its own; `exo rm` gives them back", file=sys.stderr)
  for model in models:
    for told in model.known_deviations if model.state.where or arguments.model_name else ():
      print(f"known deviation of {model.id} on {told}", file=sys.stderr)
    if model.warning:
      print(f"{model.id}: {model.warning}", file=sys.stderr)
  if any(model.state.verified is False for model in models):
    print("unverified: came from other nodes, or was put there by hand, and nothing to compare it with could be reached",
          file=sys.stderr)  # yapf: disable
  return 0


def _row(model: ListedModel) -> tuple[str, ...]:
  state = model.state
  size = "?" if state.total_bytes is None else shown_bytes(state.total_bytes)
  here = "yes" if state.is_whole else f"{100 * state.fraction:.0f} %" if state.where else "-"
  if state.verified is False:
    here += ", unverified"
  if state.made_bytes:
    here += f" + {shown_bytes(state.made_bytes)} made"
  return (
      model.id, str(model.layers or "?"), state.form or model.profile.packing or "?", size, here, state.where
      or state.source, _also(model), escape(str(model.fit))
  )


def _also(model: ListedModel) -> str:
  """In short: of quantizations the smallest and the largest."""
  state = model.state
  formats = [form for form in state.forms if form in FORMATS]
  others = [form for form in state.forms if form not in FORMATS]
  if others and "gguf" in formats:
    formats.remove("gguf")
  told = others if len(others) <= 2 else [f"{others[0]}…{others[-1]}"]
  return " ".join([*told, *formats]) or "-"


def _in_all_forms(judge: ModelJudge, name: str) -> list[ListedModel]:
  """As its name stands for, and as each other one by itself. Raises `ModelNotFoundError`."""
  store = judge.profiles.store
  first = judge.listed(store.find(name))
  if name not in store.registry.cards:
    return [first]
  return [first, *(judge.listed(store.find(f"{name}:{form}")) for form in first.state.forms)]


def _as_json(model: ListedModel) -> dict[str, Any]:
  state, profile, fit = model.state, model.profile, model.fit
  return {
      "id": model.id, "name": state.pretty_name, "layers": model.layers, "total_bytes": state.total_bytes,
      "held_bytes": state.held_bytes, "made_bytes": state.made_bytes, "here": state.is_whole, "path": state.where or None, "source": state.source,
      "context_length": profile.context, "quantization": profile.packing or None, "capabilities": profile.capabilities,
      "sampling": model.sampling.said,
      "known_deviations": model.known_deviations,
      "warning": model.warning or None,
      "form": state.form or None, "forms": state.forms,
      "fits": None if fit.where is Where.UNKNOWN else fit.runs,
      "fit": {"where": fit.where, "missing_mb": fit.missing_mb, "reason": fit.reason or None}, "verified": state.verified
  }  # yapf: disable


def _alone(config: Config) -> ModelJudge:
  """What a node of this machine would say, were it alone."""
  store = ModelStore(config.exo_home, config.model_dirs, config.models)
  try:
    workers = _workers(config)
  except EngineUnavailableError as error:
    workers = (RingWorker(WorkerState("", "", 0, 0, 0, cannot=error.message)), )
  store.prefer(FormChoice(lambda: workers))
  wanted = LoadedFor(config.context, config.parallel)
  warnings = warnings_of(gains_kept(config.state_dir))
  return ModelJudge(
      ModelProfiles(store), "", workers, load_strategy(config.placement), wanted, {}, {}, warnings=warnings
  )


def _workers(config: Config) -> tuple[RingWorker, ...]:
  engines = engines_by_device(offered_engines(config.inference_engine, config.quantize), config.devices)
  offered, free = offers_mb(list(engines), config.max_memory), memory().available
  parts = [mb / max(1, sum(offered)) for mb in offered]
  return tuple(
      RingWorker(WorkerState("", name, 0, mb * _MB, int(free * part)), engines[name])
      for name, mb, part in zip(engines, offered, parts, strict=True)
  )


async def _fits_of_ring(config: Config) -> dict[str, Fit] | None:
  """What a node of this machine says of each model; None where none runs here."""
  from exo.cli.client import ApiClient
  for info in running_nodes(config.state_dir):
    try:
      async with asyncio.timeout(_ASK_S), ApiClient(info) as api:
        data = (await api.get("/v1/models?all=true"))["data"]
        return {model["id"]: _fit_of(model["fit"]) for model in data}
    except (ExoError, OSError, TimeoutError, KeyError, ValueError):  # the last two: a node of another version
      continue
  return None


def _fit_of(told: dict[str, Any]) -> Fit:
  return Fit(Where(told["where"]), told["missing_mb"], told["reason"] or "")


def pull_command(config: Config, arguments: argparse.Namespace) -> int:
  """Fetch a whole model onto this machine, from neighbours first."""
  name: str = arguments.model_name
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
  return asyncio.run(_remove(config, arguments.model_name))


async def _remove(config: Config, name: str) -> int:
  from exo.cli.client import ApiClient, answers
  said = None
  for info in running_nodes(config.state_dir):
    if await answers(info):
      async with ApiClient(info) as api:
        told = await api.delete(f"/models/{quote(name)}")
        said = told["freed_bytes"], "" if told["deleted"] else told["message"]
        break
  if said is None:
    removed = await ModelStore(config.exo_home, config.model_dirs, config.models).delete(name)
    said = removed.n_bytes, removed.stays
  freed, stays = said
  print(f"{name} is gone: {shown_bytes(freed)} freed" if not stays else f"{shown_bytes(freed)} freed: {stays}")
  return 0
