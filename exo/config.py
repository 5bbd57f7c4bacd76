"""All settings of a node in one frozen object, built once from flags and environment, and passed down."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from exo.bounds import MAX_CONTEXT, MAX_PARALLEL, MAX_WORKERS, is_worker_name
from exo.errors import ConfigError
from exo.model_aliases import parse_alias
from exo.origins import check_origin

ExactMode = Literal["all", "seeded", "off"]  # which requests' tokens depend on nothing but the request
DEFAULT_API_PORT = 52415
DEFAULT_DISCOVERY_PORT = 5678
DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Config:
  """Ports: None takes a free one (the API first tries 52415). Memory in MB, times in seconds."""
  # node
  node_id: str | None = None
  node_host: str = "0.0.0.0"
  node_port: int | None = None
  inference_engine: str = "auto"
  devices: tuple[str, ...] = ()
  quantize: str | None = None
  kv_type: str | None = None
  weights: str | None = None
  placement: str = "memory"
  max_memory: int | None = None
  kv_cache_memory: int | None = None
  context: int | None = None  # tokens of one request and its answer
  parallel: int | None = None  # requests at once
  exact: ExactMode = "seeded"
  speculation: str = "off"
  awake_cores: str = "auto"
  wire_dtype: Literal["native", "16", "8"] = "native"
  disable_tui: bool = False
  wait_for_peers: int = 0
  grace_period: float = 30.0
  # discovery
  discovery_module: str = "udp"
  listen_port: int = DEFAULT_DISCOVERY_PORT
  broadcast_port: int = DEFAULT_DISCOVERY_PORT
  discovery_timeout: float = 30.0
  discovery_config_path: Path | None = None
  tailscale_api_key: str | None = field(default=None, repr=False)
  tailnet_name: str | None = None
  peers: tuple[str, ...] = ()
  node_id_filter: tuple[str, ...] = ()
  interface_type_filter: tuple[str, ...] = ()
  # API
  chatgpt_api_host: str = "127.0.0.1"
  chatgpt_api_port: int | None = None
  chatgpt_api_response_timeout: float = 900.0
  queue_timeout: float = 300.0
  max_generate_tokens: int = 10000
  default_model: str = DEFAULT_MODEL
  default_temp: float | None = None  # instead of the model's own
  system_prompt: str | None = None
  no_repetition_guard: bool = False  # answers may say the same over and over
  # security
  cluster_key: str | None = field(default=None, repr=False)
  cluster_key_file: Path | None = None
  api_key: str | None = field(default=None, repr=False)
  api_allowed_hosts: tuple[str, ...] = ()
  cors_origins: tuple[str, ...] = ()
  model_aliases: tuple[str, ...] = ()
  max_peer_memory: int | None = None  # what another node may say that it offers; None: 2 TB without a cluster key
  trusted_proxies: tuple[str, ...] = ()
  shared_prefixes: bool = False
  no_store: bool = False  # nothing of a conversation is kept
  # models
  model_dirs: tuple[Path, ...] = ()
  models: tuple[Path, ...] = ()
  keep: tuple[str, ...] = ()  # models that are not unloaded for others
  max_parallel_downloads: int = 8
  download_limit: float | None = None  # MB/s from the hub
  download_quick_check: bool = False
  # environment
  exo_home: Path = Path("~/.cache/exo/downloads")
  log_format: str = "text"
  debug: int = 0
  debug_discovery: int = 0
  tinygrad_debug: int = 0

  @property
  def state_dir(self) -> Path:
    """Node ids, locks and runtime files of this machine; created with mode 0700 by whoever writes first."""
    return self.exo_home / ".exo"


def _integer(environment: Mapping[str, str], name: str, low: int, high: int) -> int:
  text = environment.get(name, "").strip() or "0"
  if not text.isdigit() or not low <= int(text) <= high:
    raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {text!r}")
  return int(text)


def config_from(arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Config:
  """The configuration of these flags (those that were given) and this environment.

  Raises `ConfigError` that names the flag or variable.
  """
  environment = os.environ if environment is None else environment
  names = {f.name for f in fields(Config)}
  values = {key: value for key, value in arguments.items() if key in names and value is not None}
  home = environment.get("EXO_HOME") or "~/.cache/exo/downloads"
  try:
    values["exo_home"] = Path(home).expanduser().absolute()
  except (RuntimeError, OSError) as error:  # a user without a home, a working folder that is gone
    raise ConfigError(
        f"no folder for models and settings can be found ({error}): set EXO_HOME to one that this user may write"
    ) from error
  if "cluster_key" not in values and "cluster_key_file" not in values:
    values["cluster_key"] = environment.get("EXO_CLUSTER_KEY") or None
  values.setdefault("api_key", environment.get("EXO_API_KEY") or None)
  values["debug"] = _integer(environment, "DEBUG", 0, 9)
  values["debug_discovery"] = _integer(environment, "DEBUG_DISCOVERY", 0, 9)
  values["tinygrad_debug"] = _integer(environment, "TINYGRAD_DEBUG", 0, 9)
  named_llama_cpp(environment)  # said at the start if it is wrong
  config = Config(**values)
  _check(config)
  return config


def certificate_settings() -> dict[str, str]:
  """Files and folders of certificates that the user names, by the variables that programs look at."""
  names = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
  return {name: text for name in names if (text := os.environ.get(name))}


def named_llama_cpp(environment: Mapping[str, str] | None = None) -> Path | None:
  """The library of llama.cpp that the user wants, or a folder with it. Raises `ConfigError` where there is nothing."""
  text = (os.environ if environment is None else environment).get("EXO_LLAMA_CPP", "").strip()
  if not text:
    return None
  try:
    path = Path(text).expanduser().absolute()
    found = path.exists()
  except (RuntimeError, OSError):
    found = False
  if not found:
    raise ConfigError(
        f"EXO_LLAMA_CPP is {text}, where there is nothing: name a library of llama.cpp or a folder with one"
    )
  return path


def quiet_libraries(debug: int) -> None:
  """Keep gRPC from writing a line to stderr for every stranger it refuses; exo's own log says it once, in words.

  Call before gRPC is imported; what the user has set stays.
  """
  if debug < 5:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


_LEAST = {
    "wait_for_peers": 0,
    "max_memory": 1,
    "max_peer_memory": 1,
    "kv_cache_memory": 1,
    "context": 2,
    "parallel": 1,
    "max_generate_tokens": 1,
    "discovery_timeout": 0.1,
    "max_parallel_downloads": 1,
    "download_limit": 0.001,
    "grace_period": 0,
    "chatgpt_api_response_timeout": 1,
    "queue_timeout": 1,
}
_MOST = {"context": MAX_CONTEXT, "parallel": MAX_PARALLEL}


def _check(config: Config) -> None:
  for flag, port in (("--node-port", config.node_port), ("--chatgpt-api-port", config.chatgpt_api_port),
                     ("--listen-port", config.listen_port), ("--broadcast-port", config.broadcast_port)):
    if port is not None and not 0 <= port <= 65535:
      raise ConfigError(f"{flag} must be from 0 (any free one) to 65535, not {port}")
  for name, least in _LEAST.items():
    number = getattr(config, name)
    if number is not None and number < least:
      raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, not {number}")
  for name, most in _MOST.items():
    number = getattr(config, name)
    if number is not None and number > most:
      raise ConfigError(f"--{name} must be at most {most}, not {number}")
  if config.default_temp is not None and not 0 <= config.default_temp <= 2:
    raise ConfigError(f"--default-temp must be from 0 to 2, not {config.default_temp}")
  if config.discovery_module == "manual" and config.discovery_config_path is None:
    raise ConfigError("--discovery-module manual needs --discovery-config-path FILE, a JSON file that names the peers")
  if config.discovery_module == "tailscale" and not (config.tailscale_api_key and config.tailnet_name):
    raise ConfigError("--discovery-module tailscale needs --tailscale-api-key KEY and --tailnet-name NAME")
  for origin in config.cors_origins:
    check_origin(origin)
  for alias in config.model_aliases:
    parse_alias(alias)
  for device in config.devices:
    if not is_worker_name(device):
      raise ConfigError(f"--devices {device!r} must be a short name of small letters and digits, as cpu or gpu0")
  if len(set(config.devices)) < len(config.devices) or len(config.devices) > MAX_WORKERS:
    raise ConfigError(f"--devices must name each device once, and at most {MAX_WORKERS}")
  for proxy in config.trusted_proxies:
    try:
      ipaddress.ip_network(proxy, strict=False)
    except ValueError:
      raise ConfigError(f"--trusted-proxy {proxy!r} must be an address, or a network as 10.0.0.0/8") from None
  for folder in config.model_dirs:
    if not folder.is_dir():
      raise ConfigError(f"--model-dir {folder} is not a folder")


def user_config_dir() -> Path:
  """Where programs of this user keep their settings, by the XDG base directory specification. Raises `ConfigError`."""
  named = os.environ.get("XDG_CONFIG_HOME")
  return Path(named) if named else user_home() / ".config"


def user_home() -> Path:
  """Raises `ConfigError` for a user without one."""
  try:
    return Path("~").expanduser()
  except RuntimeError as error:
    raise ConfigError(f"this user has no home folder ({error}): set HOME to one") from error
