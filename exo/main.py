"""The `exo` command."""

from __future__ import annotations

import asyncio
import sys

from exo import log
from exo.cli.arguments import build_parser
from exo.config import config_from
from exo.errors import ExoError


def run() -> None:
  """Parse the command line and do what it says; the process ends with its exit status."""
  arguments = build_parser().parse_args()
  try:
    config = config_from({**vars(arguments), "model_dirs": tuple(arguments.model_dirs or ()) or None})
    log.set_level(config.debug)
    log.set_format(config.log_format)
    if arguments.command == "run":
      from exo.cli.run_command import run_command
      status = run_command(config, arguments)
    else:
      from exo.cli.serve import serve
      status = asyncio.run(serve(config))
  except ExoError as error:
    log.say(f"exo: {error}")
    status = 1
  except KeyboardInterrupt:
    status = 130
  sys.exit(status)
