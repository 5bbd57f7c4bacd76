"""The `exo` command."""

from __future__ import annotations

import asyncio
import sys

from exo import log
from exo.cli.arguments import build_parser
from exo.config import config_from, quiet_libraries
from exo.errors import ExoError


def run() -> None:
  """Parse the command line and do what it says; the process ends with its exit status."""
  try:
    if sys.argv[1:2] == ["key"]:
      from exo.cli.key_command import key_command
      sys.exit(key_command(sys.argv[2:]))
    if sys.argv[1:2] in (["status"], ["stop"]):
      sys.exit(_local_command(sys.argv[1], sys.argv[2:]))
    if sys.argv[1:2] == ["bench"]:
      from exo.cli import bench_command as bench
      sys.exit(bench.bench_command(config_from({}), bench.build_parser().parse_args(sys.argv[2:])))
    if sys.argv[1:2] == ["demo"]:
      sys.exit(_demo(sys.argv[2:]))
    arguments = build_parser().parse_args()
    repeated = ("model_dirs", "api_allowed_hosts", "cors_origins")
    config = config_from(vars(arguments) | {name: tuple(getattr(arguments, name) or ()) or None for name in repeated})
    log.set_level(config.debug)
    log.set_format(config.log_format)
    quiet_libraries(config.debug)
    if arguments.command == "doctor":
      from exo.cli.doctor_command import doctor_command
      status = doctor_command(config)
    elif arguments.command == "run":
      from exo.cli.run_command import run_command
      status = run_command(config, arguments)
    elif arguments.command in ("models", "pull", "rm"):
      from exo.cli import models_command
      commands = {
          "models": models_command.models_command, "pull": models_command.pull_command, "rm": models_command.rm_command
      }
      status = commands[arguments.command](config, arguments)
    else:
      if arguments.command == "join":
        from exo.cli.key_command import join
        config = join(config, arguments.model_name)
      from exo.cli.serve import serve
      status = asyncio.run(serve(config))
  except ExoError as error:
    log.say(f"exo: {error}")
    status = 1
  except KeyboardInterrupt:
    status = 130
  sys.exit(status)


def _local_command(command: str, argv: list[str]) -> int:
  from exo.cli import status_command as local
  arguments = local.build_parser(command).parse_args(argv)
  return (local.status_command if command == "status" else local.stop_command)(config_from({}), arguments)


def _demo(argv: list[str]) -> int:
  from exo.cli import demo_command as demo
  return demo.demo_command(config_from({}), demo.build_parser().parse_args(argv))
