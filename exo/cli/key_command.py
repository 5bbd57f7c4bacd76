"""`exo key …`: the cluster's key, its change, join tokens, and the API's keys; and the first part of `exo join`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from exo.api.keys import ROLES, ApiKeyStore
from exo.cli.parser import Parser
from exo.config import Config, config_from
from exo.errors import ConfigError
from exo.networking.address_rule import own_addresses
from exo.networking.cluster_key import (
    check_key_text,
    default_key_file,
    derive,
    new_key_text,
    open_keyring,
    read_key_file,
    write_key_file,
)
from exo.networking.join_token import JoinToken, decode_token, encode_token
from exo.networking.seeds import read_seeds, seeds_file
from exo.private_files import write_private
from exo.runtime_file import running_nodes

_MAX_ADDRESSES = 6

_DESCRIPTION = """\
One secret keeps strangers out of the ring: every node needs the same cluster key. Without one anyone on the network joins.

  exo key new              make a key for this machine's nodes; then, on each other machine, `exo join TOKEN`
  exo key token            print the token (address and key in one string) of the node that runs here
  exo key show             print the key

To change the key while the ring runs, do each step on every machine before the next one:
  exo key add [KEY]        accept a second key too (made up where none is given; give the same one everywhere)
  exo key use              use the second one from now on, accept both
  exo key drop             accept only the one in use

Keys for clients of the API (all routes but health want one as soon as there is one):
  exo key api new NAME     print a new key, once; only its hash is kept. With --role user it can ask models and no more;
                           else it is an admin's: it may also fetch and delete models, cancel others' requests, and quit
  exo key api ls           list names and roles
  exo key api rm NAME      a running node refuses it within a second"""


def build_key_parser() -> Parser:
  parser = Parser(prog="exo key", description=_DESCRIPTION)
  parser.add_argument(
      "--cluster-key-file", type=Path, metavar="FILE", help="another place than EXO_HOME/.exo/cluster.key"
  )
  parser.add_argument("--cluster-key", metavar="KEY", help="for `token`: the key that the running node was given")
  commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
  for name in ("new", "show", "token", "use", "drop"):
    commands.add_parser(name)
  commands.add_parser("add").add_argument("key", nargs="?")
  api = commands.add_parser("api").add_subparsers(dest="api_action", required=True, metavar="ACTION")
  api.add_parser("ls")
  for name in ("new", "rm"):
    action = api.add_parser(name)
    action.add_argument("name")
    if name == "new":
      action.add_argument("--role", choices=ROLES, default="admin", help="what it may do (default admin)")
  return parser


def key_command(arguments: list[str], environment: Mapping[str, str] | None = None) -> int:
  """Returns the exit status. Raises `ConfigError`. What was asked for goes to stdout, explanations to stderr."""
  parsed = build_key_parser().parse_args(arguments)
  config = config_from(vars(parsed), environment)
  path = config.cluster_key_file or default_key_file(config)
  if parsed.action == "api":
    return _api(config, parsed)
  if parsed.action == "token":
    return _token(config)
  if parsed.action == "new":
    return _new(path)
  texts = read_key_file(path) if path.exists() else ()
  if not texts:
    raise ConfigError(f"there is no cluster key in {path}: `exo key new` makes one")
  if parsed.action == "show":
    print("\n".join(texts))
    return 0
  return _rotate(path, texts, parsed.action, getattr(parsed, "key", None))


def _tell(text: str) -> None:
  print(text, file=sys.stderr)


def _new(path: Path) -> int:
  if path.exists():
    raise ConfigError(f"there is a cluster key in {path} already: `exo key add` begins a change of keys")
  write_key_file(path, (new_key_text(), ))
  _tell(f"wrote {path}. Start exo here anew, then `exo key token` prints what the other machines need to join.")
  return 0


def _rotate(path: Path, texts: tuple[str, ...], action: str, key: str | None) -> int:
  if action == "add":
    if len(texts) > 1:
      raise ConfigError("two keys are valid already: finish that change first (`exo key use`, then `exo key drop`)")
    second = new_key_text() if key is None else check_key_text(key, "exo key add")
    if second == texts[0]:
      raise ConfigError("this key is in use already")
    write_key_file(path, (texts[0], second))
    if key is None:
      print(second)
      _tell("now `exo key add KEY` with this key on every other machine, then `exo key use` on every machine")
    return 0
  if len(texts) < 2:
    raise ConfigError("there is only one key: `exo key add` adds the one to change to")
  write_key_file(path, texts[::-1] if action == "use" else texts[:1])
  named = derive(texts[1] if action == "use" else texts[0]).name
  _tell(f"cluster key {named} is in use" + ("; once it is on every machine, `exo key drop`" if action == "use" else ""))
  return 0


def _token(config: Config) -> int:
  keyring = open_keyring(config)
  if keyring is None:
    raise ConfigError("there is no cluster key: `exo key new` makes one, then start exo anew")
  if len(keyring.texts) > 1:
    raise ConfigError("the key is being changed: `exo key drop` ends that, then tokens can be made")
  names = {key.name for key in keyring.accepted}
  nodes = [info for info in running_nodes(config.state_dir) if info.cluster in names]
  if not nodes:
    raise ConfigError("no node with this cluster key runs here: start exo (anew, if it ran before the key was made)")
  addresses = sorted((a for a in own_addresses() if not a.is_loopback and not a.is_link_local), key=lambda a: a.version)
  if not addresses:
    raise ConfigError("this machine has no address that another one could reach")
  hosts = [str(a) if a.version == 4 else f"[{a}]" for a in addresses[:_MAX_ADDRESSES]]
  print(encode_token(JoinToken(tuple(f"{host}:{nodes[0].grpc_port}" for host in hosts), keyring.texts[0])))
  _tell("run `exo join TOKEN` on the other machine; the token holds the cluster key, so keep it to yourself")
  return 0


def _api(config: Config, parsed: argparse.Namespace) -> int:
  store = ApiKeyStore(config.state_dir)
  match parsed.api_action:
    case "new":
      first = not store.stored()
      print(store.add(parsed.name, parsed.role))
      _tell("this is shown once." + (" From now on every route but health wants a key." if first else ""))
    case "rm":
      store.remove(parsed.name)
      if not store.stored():
        _tell("that was the last one: a node that is started from now on wants no key")
    case _:
      for key in store.stored():
        print(f"{key.name:24s} {key.role:6s} made {time.strftime('%Y-%m-%d %H:%M', time.localtime(key.created))}")
  return 0


def join(config: Config, text: str | None, ask: Callable[[], str] = sys.stdin.readline) -> Config:
  """Keep what the token says, so that `exo` alone joins from now on; the configuration to start with.

  Without a token, or with "-", it is read from stdin, where no other user sees it. Raises `ConfigError`.
  """
  if text in (None, "-"):
    if sys.stdin.isatty():
      _tell("the token that `exo key token` printed:")
    text = ask()
  token = decode_token(text or "")
  path = config.cluster_key_file or default_key_file(config)
  if path.exists() and token.key not in read_key_file(path):
    raise ConfigError(f"this machine has another cluster key in {path}: remove that file to leave the other ring")
  if not path.exists():
    write_key_file(path, (token.key, ))
  seeds = tuple(dict.fromkeys((*token.addresses, *read_seeds(config.state_dir))))[:16]
  write_private(seeds_file(config.state_dir), "".join(f"{seed}\n" for seed in seeds))
  return replace(config, cluster_key=None, cluster_key_file=path)
