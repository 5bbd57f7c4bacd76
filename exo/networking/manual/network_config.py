"""The JSON file of manual discovery: who is in the network and where."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exo.errors import ConfigError

_EXAMPLE = '{"peers": {"node1": {"address": "192.168.1.10", "port": 50051}}}'


@dataclass(frozen=True, slots=True)
class ConfiguredPeer:
  node_id: str
  address: str
  port: int


def read_network_config(path: Path) -> list[ConfiguredPeer]:
  """Raises `ConfigError` that names the file, the line or key, and what is expected there."""
  try:
    text = path.read_text("utf-8")
  except OSError as error:
    raise ConfigError(f"{path}: {error.strerror}. It should be a JSON file such as {_EXAMPLE}") from error
  except UnicodeDecodeError as error:
    raise ConfigError(f"{path} is not UTF-8 text. It should be a JSON file such as {_EXAMPLE}") from error
  try:
    document = json.loads(text)
  except (ValueError, RecursionError) as error:
    where = f"line {error.lineno}, column {error.colno}: {error.msg}" if isinstance(
        error, json.JSONDecodeError
    ) else error
    raise ConfigError(f"{path}, {where}. It should look like {_EXAMPLE}") from error
  peers = document.get("peers") if isinstance(document, dict) else None
  if not isinstance(peers, dict):
    raise ConfigError(f'{path}: the key "peers" must be an object of nodes, as in {_EXAMPLE}')
  return [_peer(path, node_id, value) for node_id, value in peers.items()]


def _peer(path: Path, node_id: str, value: Any) -> ConfiguredPeer:
  if not isinstance(value, dict):
    raise ConfigError(f"{path}: peers.{node_id} must be an object with address and port")
  address, port = value.get("address"), value.get("port")
  if not isinstance(address, str) or not address:
    raise ConfigError(f"{path}: peers.{node_id}.address must be a host name or an IP address, not {address!r}")
  if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
    raise ConfigError(f"{path}: peers.{node_id}.port must be a number from 1 to 65535, not {port!r}")
  return ConfiguredPeer(node_id, address, port)
