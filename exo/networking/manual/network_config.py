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
  """Raises `ConfigError` that names the file, the line and key, and what is expected there."""
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
  return [_Peer(path, text, node_id).read(value) for node_id, value in peers.items()]


@dataclass(frozen=True, slots=True)
class _Peer:
  """One entry of the file, while it is checked."""
  path: Path
  text: str
  node_id: str

  def read(self, value: Any) -> ConfiguredPeer:
    if not isinstance(value, dict):
      raise self._wrong((), "must be an object with address and port", value)
    address, port = value.get("address"), value.get("port")
    if not isinstance(address, str) or not address:
      raise self._wrong(("address", ), "must be a host name or an IP address", address)
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
      raise self._wrong(("port", ), "must be a number from 1 to 65535", port)
    if "device_capabilities" in value:
      self._check_capabilities(value["device_capabilities"])
    return ConfiguredPeer(self.node_id, address, port)

  def _check_capabilities(self, value: Any) -> None:
    """Nothing else is done with them: a node says itself what it has, once it is reached."""
    key = "device_capabilities"
    if not isinstance(value, dict):
      raise self._wrong((key, ), "must be an object with model, chip, memory and flops", value)
    for name in ("model", "chip"):
      if not isinstance(value.get(name, ""), str):
        raise self._wrong((key, name), "must be a text", value[name])
    if not _is_amount(value.get("memory", 0)):
      raise self._wrong((key, "memory"), "must be a number of MB", value["memory"])
    flops = value.get("flops", {})
    if not isinstance(flops, dict):
      raise self._wrong((key, "flops"), "must be an object with fp32, fp16 and int8", flops)
    for name in ("fp32", "fp16", "int8"):
      if not _is_amount(flops.get(name, 0)):
        raise self._wrong((key, "flops", name), "must be a number of TFLOPS", flops[name])

  def _wrong(self, keys: tuple[str, ...], what: str, value: Any) -> ConfigError:
    at = 0
    for key in ("peers", self.node_id, *keys):  # where a key is missing, the line is that of the object around it
      at = max(at, self.text.find(json.dumps(key, ensure_ascii=False), at))
    line = self.text.count("\n", 0, at) + 1
    return ConfigError(f"{self.path}, line {line}: {'.'.join(('peers', self.node_id, *keys))} {what}, not {value!r}")


def _is_amount(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
