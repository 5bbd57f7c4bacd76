"""The `exo` command."""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import sys

from exo import log
from exo.cli.arguments import build_parser
from exo.config import Config, config_from, quiet_libraries
from exo.errors import ExoError
from exo.library_files import keep_library_files
from exo.standard_streams import never_waiting, reader_is_gone, reserve


def run() -> None:
  """Parse the command line and do what it says; the process ends with its exit status."""
  reserve()
  try:
    try:
      status = _command()
    finally:
      sys.stdout.flush()  # here it can still be told
  except ExoError as error:
    log.say(f"exo: {error}")
    status = 1
  except KeyboardInterrupt:
    status = 130
  except OSError as error:
    status = _unwritten(error)
  sys.exit(status)


def _command() -> int:
  if sys.argv[1:2] == ["key"]:
    from exo.cli.key_command import key_command
    return key_command(sys.argv[2:])
  if sys.argv[1:2] in (["status"], ["stop"]):
    return _local_command(sys.argv[1], sys.argv[2:])
  if sys.argv[1:2] == ["bench"]:
    from exo.cli import bench_command as bench
    return bench.bench_command(config_from({}), bench.build_parser().parse_args(sys.argv[2:]))
  if sys.argv[1:2] == ["engine"]:
    from exo.cli import engine_command as engine
    return engine.engine_command(config_from({}), engine.build_parser().parse_args(sys.argv[2:]))
  if sys.argv[1:2] == ["launch"]:
    from exo.cli import launch_command as launch
    return launch.launch_command(config_from({}), launch.parsed(sys.argv[2:]))
  if sys.argv[1:2] == ["demo"]:
    return _demo(sys.argv[2:])
  arguments = build_parser().parse_args()
  repeated = ("model_dirs", "api_allowed_hosts", "cors_origins", "trusted_proxies", "model_aliases")
  config = config_from(vars(arguments) | {name: tuple(getattr(arguments, name) or ()) or None for name in repeated})
  log.set_level(config.debug)
  log.set_format(config.log_format)
  quiet_libraries(config.debug)
  keep_library_files(config.state_dir)
  if arguments.command == "doctor":
    from exo.cli.doctor_command import doctor_command
    return doctor_command(config)
  if arguments.command in ("models", "rm"):
    from exo.cli import models_command
    return (models_command.models_command
            if arguments.command == "models" else models_command.rm_command)(config, arguments)
  with never_waiting(answers=arguments.command in ("run", "pull")):
    try:
      return _with_a_node(config, arguments)
    except ExoError as error:  # said here, where it cannot wait
      log.say(f"exo: {error}")
      return 1


def _with_a_node(config: Config, arguments: argparse.Namespace) -> int:
  """The commands that run a node, or may."""
  if arguments.command == "run":
    from exo.cli.run_command import run_command
    return run_command(config, arguments)
  if arguments.command == "pull":
    from exo.cli.models_command import pull_command
    return pull_command(config, arguments)
  if arguments.command == "join":
    from exo.cli.key_command import join
    config = join(config, arguments.model_name)
  from exo.cli.serve import serve
  return asyncio.run(serve(config))


_READER_GONE = 141  # what a shell shows for a program that SIGPIPE ended


def _unwritten(error: OSError) -> int:
  """An exit status for output that cannot be written, as of `exo models | head`; anything else is raised on."""
  if isinstance(error, BrokenPipeError) and reader_is_gone():
    status = _READER_GONE
  elif error.errno == errno.ENOSPC and error.filename is None:
    log.say("exo: what it says cannot be written: the disk is full")
    status = 1
  else:
    raise error
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in a buffer can go nowhere
  return status


def _local_command(command: str, argv: list[str]) -> int:
  from exo.cli import status_command as local
  arguments = local.build_parser(command).parse_args(argv)
  return (local.status_command if command == "status" else local.stop_command)(config_from({}), arguments)


def _demo(argv: list[str]) -> int:
  from exo.cli import demo_command as demo
  return demo.demo_command(config_from({}), demo.build_parser().parse_args(argv))
