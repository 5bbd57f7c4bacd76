"""What a node says at its start: what it is, every address that it listens on, and who may use each."""

from __future__ import annotations

from dataclasses import dataclass

from exo.config import DEFAULT_API_PORT, Config
from exo.networking.address_rule import parse_address

OPEN_RING = (
    "WARNING: no cluster key: anyone on this network can join the ring, see what is asked and use this machine. "
    "`exo key new` makes a key."
)
OPEN_API = (
    "WARNING: the API listens beyond this machine without a key: anyone who reaches it can use it. "
    "`exo key api new NAME` makes a key, --api-key gives one."
)


@dataclass(frozen=True, slots=True)
class Listeners:
  """Where a started node can be reached. `cluster` is the name of its cluster key, None without one."""
  grpc_port: int
  api_url: str
  api_port: int
  api_keyed: bool
  cluster: str | None


def is_loopback(host: str) -> bool:
  """Only this machine can reach an API bound to `host`."""
  address = parse_address(host)
  return host == "localhost" if address is None else address.is_loopback


def listener_lines(config: Config, at: Listeners) -> list[str]:
  """One line for each listener, and the warnings."""
  ring = "anyone on this network" if at.cluster is None else f"nodes with cluster key {at.cluster}"
  lines = [f"  ring    {config.node_host}:{at.grpc_port} (gRPC) for {ring}, found by {_how_found(config)}"]
  if config.discovery_module == "udp":
    lines.append(f"          0.0.0.0:{config.listen_port} (UDP) for beacons of {ring}")
  where = "this machine only" if is_loopback(config.chatgpt_api_host) else "whoever can reach it"
  key = " and has an API key" if at.api_keyed else ""
  bound = f"{config.chatgpt_api_host}:{at.api_port}"
  lines.append(f"  API     {at.api_url} ({bound}) for {where}{key}, model {config.default_model} where none is named")
  if config.chatgpt_api_port is None and at.api_port != DEFAULT_API_PORT:
    lines.append(f"          (port {DEFAULT_API_PORT} is taken, so a free one was)")
  if config.cors_origins:
    lines.append(f"          also for pages of {', '.join(config.cors_origins)}")
  if at.cluster is None:
    lines.append(OPEN_RING)
  if not is_loopback(config.chatgpt_api_host) and not at.api_keyed:
    lines.append(OPEN_API)
  return lines


def _how_found(config: Config) -> str:
  match config.discovery_module:
    case "manual":
      return f"the file {config.discovery_config_path}"
    case "tailscale":
      return f"the Tailscale network {config.tailnet_name}"
    case "none":
      return "nobody"
    case _:
      return f"UDP beacons on port {config.listen_port}"
