"""The command line: every flag with its help, and nothing that takes time to import."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from exo import __version__
from exo.cli.parser import Parser
from exo.cli.summaries import SUMMARIES
from exo.config import ExactMode
from exo.errors import ConfigError
from exo.inference.engine_names import engine_names
from exo.inference.kv_type import KV_TYPES, KvType
from exo.inference.quantize import Quantize
from exo.inference.weight_mode import WeightMode
from exo.topology.placements import strategy_names

_DESCRIPTION = """\
exo runs large language models over the machines you already own. Start `exo` on each of them: they find each other, \
share the model's layers in proportion to their memory, and any of them serves a ChatGPT-compatible API on port 52415."""

_EPILOG = """\
environment:
  EXO_HOME      where models are kept (default ~/.cache/exo/downloads)
  HF_ENDPOINT   a mirror of the Hugging Face hub;  HF_TOKEN  your token there
  EXO_CLUSTER_KEY, EXO_API_KEY   as --cluster-key and --api-key
  EXO_LLAMA_CPP  a library of llama.cpp of your own, or a folder with one (`exo engine --help`)
  HF_HUB_OFFLINE=1    ask no hub;  HF_HOME, HF_HUB_CACHE  its token and cache
  DEBUG=0..9    0 quiet, 1 membership, plans and requests, 2 hops, 3 frames and shapes, more for less
  DEBUG_DISCOVERY=1   every beacon;  TINYGRAD_DEBUG=1..6   tinygrad's own

examples:
  exo                                         join the ring, or begin one
  exo run "What is the capital of Japan?"     answer with the default model
  exo run llama-3.2-3b                        chat
  exo run ./model.gguf --prompt "Hello"       a file or folder of your own
  exo --discovery-module manual --discovery-config-path config.json
"""


def build_parser() -> Parser:
  """The flags of a node: what `exo` alone takes, and all of which the commands take that may start one."""
  parser = Parser(
      prog="exo",
      usage="exo [COMMAND] [FLAG …]",
      description=f"{_DESCRIPTION}\n\ncommands (exo COMMAND --help tells of each):\n{_command_lines()}",
      epilog=_EPILOG
  )
  parser.add_argument("--version", action="version", version=f"exo {__version__}")
  add_node_flags(parser)
  return parser


def _command_lines() -> str:
  return "\n".join(f"  {name:<12}{summary}" for name, summary in SUMMARIES.items())


def add_node_flags(parser: Parser) -> None:
  """Add every flag of a node, in groups."""
  node = parser.add_argument_group("node")
  node.add_argument("--node-id", metavar="ID", help="this node's name in the ring (default: one made up once and kept)")
  node.add_argument("--node-host", metavar="HOST", help="address on which other nodes reach it (default 0.0.0.0)")
  node.add_argument(
      "--node-port", type=int, metavar="PORT", help="port on which other nodes reach it (default: a free one)"
  )
  node.add_argument(
      "--inference-engine", metavar="NAME", help=f"auto, or one of them: {', '.join(engine_names())} (default auto)"
  )
  node.add_argument(
      "--devices",
      type=_names,
      metavar="NAME,…",
      help=
      "devices that compute, each a worker of its own: cpu, gpu0, gpu1, … as far as the engine can use them, or with the "
      "dummy engine any names (default: each GPU, or the CPU where there is none)"
  )
  node.add_argument(
      "--quantize",
      choices=[quantize.value for quantize in Quantize],
      help="bits in which to hold weights that are floats in their files (default: 8 with onnx, none elsewhere)"
  )
  node.add_argument(
      "--kv-type",
      type=_kv_type,
      metavar="K[:V]",
      help=
      f"with llama_cpp, how keys and values are kept: {', '.join(KV_TYPES)} (default q8_0:f16 where a model's heads allow it, else f16)"
  )
  node.add_argument(
      "--exact",
      choices=get_args(ExactMode),
      help=
      "requests to this node whose tokens are computed so that they depend on nothing but the request, whatever else runs: those with "
      "temperature 0 or a seed, all, or none, which is faster where many run at once (default seeded)"
  )
  node.add_argument(
      "--weights",
      choices=[mode.value for mode in WeightMode],
      help=
      "with llama_cpp, how weights are held: private, laid out for this processor, or mapped, as they are in the file and shared between "
      "processes (default private)"
  )
  node.add_argument(
      "--placement",
      metavar="NAME",
      help=f"how models are divided among nodes, the same on all of them: {', '.join(strategy_names())} (default memory)"
  )
  node.add_argument("--max-memory", type=int, metavar="MB", help="memory to offer to the ring (default: all)")
  node.add_argument(
      "--kv-cache-memory",
      type=int,
      metavar="MB",
      help="memory for a model's KV cache, kept prefixes included (default: what --max-memory leaves)"
  )
  node.add_argument(
      "--context",
      type=int,
      metavar="N",
      help="tokens of one request and its answer for which models are loaded (default: what fits, up to the model's own)"
  )
  node.add_argument(
      "--parallel",
      type=int,
      metavar="N",
      help="requests at once for which models are loaded; with --context, their caches take no more memory than that "
      "(default: 64 as far as they fit)"
  )
  node.add_argument(
      "--speculation",
      choices=["auto", "off"],
      help="draft tokens from text that repeats itself and verify several at once (default off)"
  )
  node.add_argument(
      "--awake-cores",
      choices=["auto", "off"],
      help=
      "keep this machine's cores from deep sleep, and what a frame needs in their caches, while a request goes round a ring "
      "of several nodes (the former on Linux, mostly as root; default auto)"
  )
  node.add_argument(
      "--wire-dtype",
      choices=["native", "16", "8"],
      help="bits of an activation's numbers between nodes, for slow links (default: as the engine computes)"
  )
  node.add_argument(
      "--wait-for-peers", type=int, metavar="N", help="serve only once N other nodes are there (default 0)"
  )
  node.add_argument(
      "--grace-period",
      type=float,
      metavar="S",
      help="seconds that requests under way get when the node is told to stop (default 30)"
  )
  node.add_argument("--disable-tui", action="store_true", default=None, help="plain lines instead of the terminal view")
  node.add_argument(
      "--log-format", choices=["text", "json"], help="json: one object a line, for log collectors (default text)"
  )

  models = parser.add_argument_group("models")
  models.add_argument("--default-model", metavar="MODEL", help="where a request names none (default smollm2-135m)")
  models.add_argument(
      "--model-alias",
      dest="model_aliases",
      action="append",
      metavar="FROM=TO",
      help=
      "another name of a model, as gpt-5=qwen3-8b or claude-*=qwen3-8b (* is any text); repeatable, and a line each in "
      ".exo/aliases in EXO_HOME"
  )
  models.add_argument(
      "--model-dir",
      "--models-seed-dir",
      dest="model_dirs",
      action="append",
      type=Path,
      metavar="DIR",
      help="a folder whose model folders and GGUF files are models under their names; repeatable"
  )
  models.add_argument(
      "--keep",
      action="append",
      metavar="MODEL",
      help="once it is loaded on this node, it is not unloaded to make room for other models; repeatable"
  )
  models.add_argument(
      "--max-parallel-downloads", type=int, metavar="N", help="connections to the hub at once (default 8)"
  )
  models.add_argument(
      "--download-limit", type=float, metavar="MB/S", help="fetch no faster than this from the hub (default: no limit)"
  )
  models.add_argument(
      "--download-quick-check",
      action="store_true",
      default=None,
      help="trust the size of files that came here by other means instead of hashing them"
  )

  discovery = parser.add_argument_group("discovery")
  discovery.add_argument(
      "--discovery-module", choices=["udp", "manual", "tailscale", "none"], help="how nodes are found (default udp)"
  )
  discovery.add_argument("--listen-port", type=int, metavar="PORT", help="UDP port for beacons (default 5678)")
  discovery.add_argument(
      "--broadcast-port", type=int, metavar="PORT", help="UDP port that beacons go to (default 5678)"
  )
  discovery.add_argument(
      "--discovery-timeout",
      type=float,
      metavar="S",
      help="seconds after which an address that nobody announces is forgotten (default 30)"
  )
  discovery.add_argument("--discovery-config-path", type=Path, metavar="FILE", help="the JSON file of manual discovery")
  discovery.add_argument("--tailscale-api-key", metavar="KEY", help="for --discovery-module tailscale")
  discovery.add_argument("--tailnet-name", metavar="NAME", help="the Tailscale network, as in its admin console")
  discovery.add_argument(
      "--peers", type=_names, metavar="HOST:PORT,…", help="nodes to join by address alone, beside those that are found"
  )
  discovery.add_argument("--node-id-filter", type=_names, metavar="ID,…", help="only these nodes")
  discovery.add_argument(
      "--interface-type-filter",
      type=_names,
      metavar="KIND,…",
      help="only these kinds of interface: thunderbolt, ethernet, wifi, vpn, virtual, loopback, other"
  )

  api = parser.add_argument_group("API")
  api.add_argument("--chatgpt-api-host", metavar="HOST", help="address that the API listens on (default 127.0.0.1)")
  api.add_argument("--chatgpt-api-port", type=int, metavar="PORT", help="its port (default 52415, a free one if taken)")
  api.add_argument(
      "--chatgpt-api-response-timeout",
      type=float,
      metavar="S",
      help="seconds without any progress after which a request fails (default 900)"
  )
  api.add_argument(
      "--queue-timeout",
      type=float,
      metavar="S",
      help="seconds that a request may wait for its turn where others are served: it is refused (429) when it would wait "
      "for longer, and when it has (default 300)"
  )
  api.add_argument("--max-generate-tokens", type=int, metavar="N", help="where a request sets no limit (default 10000)")
  api.add_argument(
      "--default-temp",
      type=float,
      metavar="T",
      help="temperature where a request sets none, 0 for the likeliest tokens (default: the model's own, else 0.7)"
  )
  api.add_argument(
      "--no-repetition-guard",
      action="store_true",
      default=None,
      help="let answers without a limit of tokens say the same over and over (a request's own: repetition_guard false)"
  )
  api.add_argument("--system-prompt", metavar="TEXT", help="put before chats that have no system message")

  security = parser.add_argument_group("security")
  security.add_argument(
      "--cluster-key-file", type=Path, metavar="FILE", help="only nodes with the same key can join (`exo key new`)"
  )
  security.add_argument(
      "--cluster-key", metavar="KEY", help="the key itself, 32 or more characters; other users may see it in `ps`"
  )
  security.add_argument(
      "--api-key",
      metavar="KEY",
      help="what clients of the API must send, 16 or more characters (better: `exo key api`)"
  )
  security.add_argument(
      "--max-peer-memory",
      type=int,
      metavar="MB",
      help="a node that says it offers more is not believed and gets no layers (default: 2097152 without a cluster key, "
      "any with one)"
  )
  security.add_argument(
      "--api-allowed-host",
      dest="api_allowed_hosts",
      action="append",
      metavar="NAME",
      help="a further name under which the API may be asked for; repeatable"
  )
  security.add_argument(
      "--cors-origin",
      dest="cors_origins",
      action="append",
      metavar="ORIGIN",
      help=
      "whose pages may use the API: a web site as https://example.org, http://localhost:* for every port of this machine, "
      "'vscode-webview://*' for a program's own windows, null (with API keys only) for local files and sandboxes; repeatable"
  )
  security.add_argument(
      "--trusted-proxy",
      dest="trusted_proxies",
      action="append",
      metavar="ADDRESS",
      help="a reverse proxy (or a network of them, as 10.0.0.0/8) whose X-Forwarded-For tells clients apart; repeatable"
  )
  security.add_argument(
      "--shared-prefixes",
      action="store_true",
      default=None,
      help="let requests begin with caches of other API keys' requests: faster, but it tells what others asked"
  )
  security.add_argument(
      "--no-store",
      action="store_true",
      default=None,
      help="keep no response and no conversation for clients: they send the whole of it with every request"
  )


def _kv_type(text: str) -> str:
  try:
    KvType.parse(text)
  except ConfigError as error:
    raise argparse.ArgumentTypeError(error.message) from None
  return text


def _names(text: str) -> tuple[str, ...]:
  return tuple(name for name in (part.strip() for part in text.split(",")) if name)
