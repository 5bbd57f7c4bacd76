"""`exo launch`: start a program of others, an agent for the most part, with this node behind it."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from exo.child_process import environment_with
from exo.cli.agents import AGENTS, Agent, Served
from exo.cli.client import ApiClient
from exo.cli.node_client import node_client
from exo.cli.parser import Parser
from exo.config import Config
from exo.errors import ExoError
from exo.log import say

_NO_KEY = "none"  # programs want one, whether the server does or not
_NOT_FOUND = 127  # what a shell shows for a command that there is not


def build_parser() -> Parser:
  parser = Parser(
      prog="exo launch",
      description=
      "Start an agent that is installed here with the ring behind it, by variables and arguments of this start "
      "alone: its own configuration stays as it is.",
      epilog="what comes after -- goes to the program: exo launch codex -- exec \"Say hello\""
  )
  parser.add_argument("agent", choices=sorted(AGENTS), help="which")
  parser.add_argument(
      "--model", help="the model (default: the default model if it can call tools, else the largest here that can)"
  )
  parser.add_argument("--print", action="store_true", help="show the command instead of running it")
  return parser


def parsed(argv: Sequence[str]) -> argparse.Namespace:
  """With `arguments`, what comes after the first `--`."""
  end = argv.index("--") if "--" in argv else len(argv)
  found = build_parser().parse_args(argv[:end])
  found.arguments = list(argv[end + 1:])
  return found


def launch_command(config: Config, arguments: argparse.Namespace) -> int:
  """The program's exit status; 127 where it is not installed."""
  agent = AGENTS[arguments.agent]
  program = shutil.which(agent.program)
  if program is None and not arguments.print:
    say(f"exo: {agent.program} is not installed here: {agent.install}")
    return _NOT_FOUND
  return asyncio.run(_launch(config, agent, program or agent.program, arguments))


async def _launch(config: Config, agent: Agent, program: str, arguments: argparse.Namespace) -> int:
  if config.chatgpt_api_port is None:  # 52415 is for those who come to stay
    config = replace(config, chatgpt_api_port=0)
  async with node_client(config, None) as api:
    model = await _model(api, agent, arguments.model)
    served = Served(api.url, api.key or _NO_KEY, model["id"], model["max_model_len"] or model["context_length"] or 8192)
    start = agent.start(served)
    command = [program, *start.arguments, *arguments.arguments]
    if arguments.print:
      print(_shown(command, start.environment, start.unset))
      return 0
    say(f"exo: {agent.name} with {served.model} at {served.url}")
    return await _run(command, environment_with(start.environment, start.unset))


async def _run(command: Sequence[str], environment: dict[str, str]) -> int:
  """The terminal is the program's until it ends; Ctrl-C is, too."""
  before = signal.signal(signal.SIGINT, lambda *_: None)  # one that is ignored would be ignored by the program as well
  try:
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    try:
      status = await process.wait()
    except asyncio.CancelledError:
      process.terminate()
      raise
  except OSError as error:
    raise ExoError(f"{command[0]} cannot be started: {error.strerror}") from error
  finally:
    signal.signal(signal.SIGINT, before)
  return status if status >= 0 else 128 - status


async def _model(api: ApiClient, agent: Agent, wanted: str | None) -> dict[str, Any]:
  """What `/v1/models` says of the one to use."""
  if wanted is not None:
    found: dict[str, Any] = await api.get(f"/v1/models/{wanted}")
    if agent.needs_tools and "tools" not in found["capabilities"]:
      say(f"exo: {found['id']} was not made for calling tools, which {agent.name} lives by: it may do little")
    return found
  models: list[dict[str, Any]] = (await api.get("/v1/models"))["data"]
  able = [model for model in models if not agent.needs_tools or "tools" in model["capabilities"]]
  if not able:
    raise ExoError(
        f"none of the models here can call tools, which {agent.name} lives by: fetch one (exo pull qwen3-4b), or name "
        "another with --model"
    )
  default = (await api.first_event("/v1/topology/stream"))["default_model"]
  return next((model
               for model in able if model["id"] == default), None) or max(able, key=lambda model: model["size"] or 0)


def _shown(command: Sequence[str], environment: Any, unset: Sequence[str]) -> str:
  import shlex
  away = [part for name in unset for part in ("-u", name)]
  variables = [f"{name}={value}" for name, value in environment.items()]
  return shlex.join(["env", *away, *variables, *command] if away or variables else command)
