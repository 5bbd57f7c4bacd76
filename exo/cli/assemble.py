"""Puts a node together from its configuration."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import exo
from exo import descriptors
from exo.api.chatgpt_api import ChatGPTAPI
from exo.api.keys import check_given
from exo.cli.workers import make_workers, offers_of
from exo.config import Config
from exo.download.file_system import lacks
from exo.download.model_store import DownloadOptions, ModelStore
from exo.errors import ConfigError
from exo.inference.engines import offered_engines
from exo.log import say
from exo.machine import process_started
from exo.networking.address_rule import AddressRule
from exo.networking.cluster_key import ClusterKeyring, open_keyring
from exo.networking.discovery import Discovery, NoDiscovery
from exo.networking.grpc.grpc_mesh import GrpcMesh
from exo.networking.peer_messages import Hello
from exo.networking.seeds import SeededDiscovery, read_seeds
from exo.node_names import own_name
from exo.orchestration.identity import claim_identity
from exo.orchestration.model_catalog import ModelCatalog
from exo.orchestration.node import Node
from exo.private_files import private_folder
from exo.runtime_file import RuntimeInfo, write_runtime_file
from exo.sizes import MB
from exo.system_figures import processors
from exo.tasks import TaskOwner, in_own_thread
from exo.topology.device_capabilities import DeviceCapabilities, probe_device
from exo.topology.placements import Strategy, load_strategy
from exo.worker.engine_speeds import MEASURING_MB, EngineSpeeds
from exo.worker.worker import Worker

T = TypeVar("T")

_FILES_S = 15.0  # a share that wakes its disks needs some of them


@dataclass(frozen=True)
class RunningNode:
  """A started node with its API."""
  node: Node
  api: ChatGPTAPI
  info: RuntimeInfo
  keyring: ClusterKeyring | None


def make_discovery(config: Config, keyring: ClusterKeyring | None) -> Discovery:
  if config.discovery_module == "manual":
    from exo.networking.manual.manual_discovery import ManualDiscovery
    assert config.discovery_config_path is not None
    return ManualDiscovery(config.discovery_config_path, config.node_id_filter)
  if config.discovery_module == "none":
    return NoDiscovery()
  if config.discovery_module == "tailscale":
    from exo.networking.tailscale.tailscale_discovery import TailscaleDiscovery
    assert config.tailscale_api_key is not None and config.tailnet_name is not None
    return TailscaleDiscovery(config.tailscale_api_key, config.tailnet_name, config.node_id_filter)
  from exo.networking.udp.guard import DatagramGuard
  from exo.networking.udp.seal import DatagramSeal
  from exo.networking.udp.udp_discovery import UdpDiscovery
  guard = DatagramGuard(None if keyring is None else DatagramSeal(keyring), AddressRule(restricted=keyring is None))
  return UdpDiscovery(
      config.listen_port, config.broadcast_port, config.node_id_filter, config.interface_type_filter,
      config.debug_discovery, guard
  )


def download_options(config: Config) -> DownloadOptions:
  limit = None if config.download_limit is None else config.download_limit * MB
  return DownloadOptions(config.max_parallel_downloads, limit, config.download_quick_check)


def _make_node(
    config: Config, node_id: str, workers: Sequence[Worker], place: Strategy, device: DeviceCapabilities,
    keyring: ClusterKeyring | None
) -> Node:
  store = ModelStore(config.exo_home, config.model_dirs, config.models, download_options(config), wary=keyring is None)
  offers = offers_of(workers)
  hello = Hello(
      node_id=node_id,
      incarnation=time.time_ns() // 10**6,
      port=config.node_port or 0,
      capabilities=replace(device, memory=sum(offer.memory_mb for offer in offers)),
      workers=offers,
      version=exo.__version__,
      local_models=tuple(store.local_models()),
      name=own_name(node_id, given=config.node_id is not None)
  )
  mesh = GrpcMesh(
      hello, config.node_host, config.discovery_timeout, keyring, config.node_id_filter, config.wire_dtype,
      config.max_peer_memory
  )
  discovery = make_discovery(config, keyring)
  seeds = (*config.peers, *(read_seeds(config.state_dir) if keyring is not None else ()))
  if seeds:
    discovery = SeededDiscovery(discovery, seeds)
  return Node(config, hello, mesh, discovery, ModelCatalog(store, config.context), workers, place, keyring is not None)


def _make_state_dir(config: Config) -> None:
  """For this user alone, whoever made it."""
  try:
    folder = private_folder(config.state_dir)
    with contextlib.suppress(OSError):  # a file system without permissions, which is said below
      folder.chmod(0o700)
  except OSError as error:
    raise ConfigError(f"{config.state_dir} cannot be written ({error.strerror}): point EXO_HOME elsewhere") from error


async def _answered(config: Config, ask: Callable[[], T]) -> T:
  """Raises `ConfigError` where the file system of EXO_HOME stands still, as a network share does whose server is away."""
  try:
    return await in_own_thread(ask, _FILES_S)
  except TimeoutError as error:
    raise ConfigError(
        f"the file system of {config.exo_home} does not answer: mend it, or point EXO_HOME to another"
    ) from error


@asynccontextmanager
async def running_node(config: Config, stop: Callable[[], None]) -> AsyncIterator[RunningNode]:
  """A node with its API, from start to stop; `stop` is what `POST /quit` calls.

  Raises `ConfigError` for ports that are taken, keys that are too short and a placement that is none, `EngineUnavailableError`
  for an engine that cannot run.
  """
  descriptors.raise_limit()
  check_given(config.api_key)
  place = load_strategy(config.placement)
  engines, device = await asyncio.gather(
      asyncio.to_thread(offered_engines, config.inference_engine, config.quantize), asyncio.to_thread(probe_device)
  )
  await _answered(config, lambda: _make_state_dir(config))
  for lack in await _answered(config, lambda: lacks(config.state_dir)):
    say(f"note: the file system of {config.exo_home} has {lack}")
  keyring = await asyncio.to_thread(open_keyring, config)
  speeds = EngineSpeeds(config.state_dir, device.chip, processors(), config.quantize)
  identity = await _answered(config, lambda: claim_identity(config.state_dir, config.node_id))
  workers = await _answered(config, lambda: make_workers(config, identity.node_id, engines, speeds))
  node = _make_node(config, identity.node_id, workers, place, device, keyring)
  token = secrets.token_urlsafe(32)
  api = ChatGPTAPI(node, stop, token, None if keyring is None else keyring.current.label_salt)
  runtime_file, background = None, TaskOwner("background")
  try:
    await api.start()
    await node.start()
    info = RuntimeInfo(
        pid=os.getpid(),
        started=process_started(os.getpid()) or 0.0,
        node_id=node.node_id,
        api_host=config.chatgpt_api_host,
        api_port=api.port,
        grpc_port=node.hello.port,
        token=token,
        cluster="" if keyring is None else keyring.current.name,
        name=node.hello.name
    )
    try:
      runtime_file = write_runtime_file(config.state_dir, info)
    except OSError as error:
      raise ConfigError(f"{config.state_dir} cannot be written ({error.strerror}): point EXO_HOME elsewhere") from error
    if node.hello.capabilities.memory >= MEASURING_MB:
      # no figure is worth memory that a model has
      background.spawn(
          speeds.learn(workers, lambda: not node.plans.idle or any(w.loaded_bytes for w in workers)), "engine speeds"
      )
    yield RunningNode(node, api, info, keyring)
  finally:
    await background.close()
    if runtime_file is not None:
      runtime_file.unlink(missing_ok=True)
    await api.stop()
    await node.stop()
    identity.release()
