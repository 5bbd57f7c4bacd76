"""The commands: which there are, how each reads its words, and what it runs. Each is imported when it is asked for."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import exo
from exo import log
from exo.cli import node_parsers
from exo.cli.arguments import build_parser
from exo.cli.parser import Parser, nearest
from exo.cli.summaries import A_NODE, ELSEWHERE, SUMMARIES
from exo.config import Config, config_from, quiet_libraries
from exo.errors import ExoError
from exo.library_files import keep_library_files
from exo.standard_streams import never_waiting

_REPEATED = ("model_dirs", "api_allowed_hosts", "cors_origins", "trusted_proxies", "model_aliases")


@dataclass(frozen=True, slots=True)
class Command:
  """`run` takes the words after the command's name and returns the exit status."""
  parser: Callable[[], Parser]
  run: Callable[[Sequence[str]], int]


def command_line(argv: Sequence[str]) -> int:
  """Do what the words after `exo` say; the exit status, 2 where they say nothing. Raises `ExoError`."""
  name, rest = _split(argv)
  if name is None:
    return _serve(build_parser().parse_args(rest))
  command = COMMANDS.get(name)
  if command is None:
    log.say(f"exo: {_unknown(name)}")
    return 2
  return command.run(rest)


def _split(argv: Sequence[str]) -> tuple[str | None, list[str]]:
  """The command, which is the first word that is neither a flag of a node nor the value of one; and all other words."""
  parser = build_parser()
  i = 0
  while i < len(argv):
    if not argv[i].startswith("-"):
      return argv[i], [*argv[:i], *argv[i + 1:]]
    words = parser.words_of(argv[i])
    if not words:  # no flag, which the parser will say
      break
    i += words
  return None, list(argv)


def _unknown(name: str) -> str:
  if name in A_NODE:
    return f"there is no command {name}: `exo` alone starts a node"
  if any(blank in name for blank in " \n\t"):
    return 'a prompt comes after the command run: exo run "…"'
  meant = ELSEWHERE.get(name.lower()) or nearest(name, [*SUMMARIES, *ELSEWHERE])
  meant = ELSEWHERE.get(meant or "", meant)
  if meant is None and _is_model(name):
    return f"there is no command {name}, but a model: exo run {name}"
  return f"there is no command {name}; " + (
      f"did you mean exo {meant}?" if meant else "exo --help shows those there are"
  )


def _is_model(name: str) -> bool:
  from exo.cli.run_words import is_path
  from exo.models import card_of
  return is_path(name) or card_of(name) is not None


def _config(arguments: argparse.Namespace) -> Config:
  config = config_from(vars(arguments) | {name: tuple(getattr(arguments, name) or ()) or None for name in _REPEATED})
  log.set_level(config.debug)
  log.set_format(config.log_format)
  quiet_libraries(config.debug)
  keep_library_files(config.state_dir)
  return config


def _with_a_node(arguments: argparse.Namespace, run: Callable[[Config], int], *, answers: bool) -> int:
  """The commands that run a node, or may."""
  config = _config(arguments)
  with never_waiting(answers=answers):
    try:
      return run(config)
    except ExoError as error:  # said here, where it cannot wait
      log.say(f"exo: {error}")
      return 1


def _serve(arguments: argparse.Namespace, prepared: Callable[[Config], Config] = lambda config: config) -> int:
  def run(config: Config) -> int:
    from exo.cli.serve import serve
    return asyncio.run(serve(prepared(config)))

  return _with_a_node(arguments, run, answers=False)


def _run(argv: Sequence[str]) -> int:
  arguments = node_parsers.run_parser().parse_args(argv)

  def run(config: Config) -> int:
    from exo.cli.run_command import run_command
    return run_command(config, arguments)

  return _with_a_node(arguments, run, answers=True)


def _pull(argv: Sequence[str]) -> int:
  arguments = node_parsers.pull_parser().parse_args(argv)

  def run(config: Config) -> int:
    from exo.cli.models_command import pull_command
    return pull_command(config, arguments)

  return _with_a_node(arguments, run, answers=True)


def _join(argv: Sequence[str]) -> int:
  arguments = node_parsers.join_parser().parse_args(argv)

  def joined(config: Config) -> Config:
    from exo.cli.key_command import join
    return join(config, arguments.token)

  return _serve(arguments, joined)


def _models(argv: Sequence[str]) -> int:
  arguments = node_parsers.models_parser().parse_args(argv)
  config = _config(arguments)
  from exo.cli.models_command import models_command
  return models_command(config, arguments)


def _rm(argv: Sequence[str]) -> int:
  arguments = node_parsers.rm_parser().parse_args(argv)
  config = _config(arguments)
  from exo.cli.models_command import rm_command
  return rm_command(config, arguments)


def _doctor(argv: Sequence[str]) -> int:
  arguments = node_parsers.doctor_parser().parse_args(argv)
  config = _config(arguments)
  from exo.cli.doctor_command import doctor_command
  return doctor_command(config, arguments.json)


def _status_parser() -> Parser:
  from exo.cli.status_command import build_parser
  return build_parser("status")


def _status(argv: Sequence[str]) -> int:
  from exo.cli.status_command import status_command
  return status_command(config_from({}), _status_parser().parse_args(argv))


def _stop_parser() -> Parser:
  from exo.cli.status_command import build_parser
  return build_parser("stop")


def _stop(argv: Sequence[str]) -> int:
  from exo.cli.status_command import stop_command
  return stop_command(config_from({}), _stop_parser().parse_args(argv))


def _key_parser() -> Parser:
  from exo.cli.key_command import build_key_parser
  return build_key_parser()


def _key(argv: Sequence[str]) -> int:
  from exo.cli.key_command import key_command
  return key_command(list(argv))


def _launch_parser() -> Parser:
  from exo.cli.launch_command import build_parser
  return build_parser()


def _launch(argv: Sequence[str]) -> int:
  from exo.cli.launch_command import launch_command, parsed
  return launch_command(config_from({}), parsed(argv))


def _alone(name: str) -> Command:
  """A command that starts no node: its module has `build_parser`, and `NAME_command` of a configuration and what was parsed."""
  def module() -> Any:
    return import_module(f"exo.cli.{name}_command")

  def parser() -> Parser:
    built: Parser = module().build_parser()
    return built

  def run(argv: Sequence[str]) -> int:
    return int(getattr(module(), f"{name}_command")(config_from({}), parser().parse_args(argv)))

  return Command(parser, run)


def _service_parser() -> Parser:
  from exo.cli.service_command import build_parser
  return build_parser()


def _service(argv: Sequence[str]) -> int:
  from exo.cli.service_command import flags_of_node, service_command
  arguments = _service_parser().parse_args(argv)
  return service_command(_config(arguments), arguments, flags_of_node(argv, arguments.action))


def _completion_parser() -> Parser:
  from exo.cli.completion_command import build_parser
  return build_parser()


def _completion(argv: Sequence[str]) -> int:
  from exo.cli.completion_command import completion_command
  arguments = _completion_parser().parse_args(argv)
  parsers = {"": build_parser, **{name: command.parser for name, command in COMMANDS.items()}}
  return completion_command(arguments, parsers, SUMMARIES)


def _version_parser() -> Parser:
  return Parser(prog="exo version", description="Print the version of exo.")


def _version(argv: Sequence[str]) -> int:
  _version_parser().parse_args(argv)
  print(f"exo {exo.__version__}")
  return 0


def _help_parser() -> Parser:
  parser = Parser(prog="exo help", description="Show what there is, or what a command takes.")
  parser.add_argument("command", nargs="?", metavar="COMMAND")
  return parser


def _help(argv: Sequence[str]) -> int:
  name = _help_parser().parse_args(argv).command
  if name is not None and name not in COMMANDS:
    log.say(f"exo: {_unknown(name)}")
    return 2
  (build_parser() if name is None else COMMANDS[name].parser()).print_help()
  return 0


COMMANDS = {
    "run": Command(node_parsers.run_parser, _run),
    "models": Command(node_parsers.models_parser, _models),
    "pull": Command(node_parsers.pull_parser, _pull),
    "rm": Command(node_parsers.rm_parser, _rm),
    "status": Command(_status_parser, _status),
    "stop": Command(_stop_parser, _stop),
    "doctor": Command(node_parsers.doctor_parser, _doctor),
    "key": Command(_key_parser, _key),
    "join": Command(node_parsers.join_parser, _join),
    "bench": _alone("bench"),
    "engine": _alone("engine"),
    "launch": Command(_launch_parser, _launch),
    "demo": _alone("demo"),
    "service": Command(_service_parser, _service),
    "completion": Command(_completion_parser, _completion),
    "version": Command(_version_parser, _version),
    "help": Command(_help_parser, _help),
}
