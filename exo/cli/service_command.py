"""`exo service`: let the system start a node and keep it running, by a unit of systemd or a job of launchd."""

from __future__ import annotations

import argparse
import os
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exo.cli.arguments import add_node_flags
from exo.cli.parser import Parser
from exo.config import Config, user_config_dir, user_home
from exo.errors import ConfigError, ExoError

_NAME, _LABEL = "exo.service", "exo.node"
_GRACE_S = 45  # longer than the time that requests under way are given
_ASK_S = 20.0


@dataclass(frozen=True, slots=True)
class Service:
  """A file that tells the system of a node, the commands that make the system read and forget it, and the one that shows its state."""
  file: Path
  text: bytes
  begin: tuple[tuple[str, ...], ...]
  end: tuple[tuple[str, ...], ...]
  status: tuple[str, ...]
  logs: str


def build_parser() -> Parser:
  parser = Parser(
      prog="exo service",
      usage="exo service install|remove|status [--system] [--write-only] [FLAG …]",
      description=
      "Let the system start a node, now and at every start, and start it anew when it fails: systemd on Linux, launchd on macOS.\n"
      "The flags that follow are the node's: exo service install --chatgpt-api-host 0.0.0.0",
      epilog="Every flag of `exo --help` is taken, too: it is what the node is started with."
  )
  parser.add_argument("action", choices=["install", "remove", "status"], help="what to do")
  parser.add_argument("--system", action="store_true", help="for the whole machine, before anybody logs in (as root)")
  parser.add_argument(
      "--write-only", action="store_true", help="write or delete the file, and leave the system's manager alone"
  )
  add_node_flags(parser)
  parser.show_only(
      ("--system", "--write-only", "--node-port", "--chatgpt-api-host", "--max-memory", "--cluster-key-file")
  )
  return parser


def service_command(config: Config, arguments: argparse.Namespace, words: Sequence[str]) -> int:
  """Returns the exit status; for status 0 where it runs. `words` are the flags of the node. Raises `ExoError`."""
  if arguments.system and os.geteuid() and arguments.action != "status":
    raise ConfigError("a service of the whole machine is root's affair: sudo, or without --system one of your own")
  service = _service(config, arguments.system, words)
  match arguments.action:
    case "install":
      return _install(service, arguments.write_only)
    case "remove":
      return _remove(service, arguments.write_only)
    case _:
      return _status(service)


def flags_of_node(words: Sequence[str], action: str) -> list[str]:
  """What of the words after `exo service` is the node's."""
  left = [word for word in words if word not in ("--system", "--write-only")]
  left.remove(action)
  return left


def _service(config: Config, system: bool, words: Sequence[str]) -> Service:
  command = [sys.executable, "-m", "exo", "--disable-tui", *words]
  if sys.platform == "darwin":
    return launchd_service(command, config.exo_home, system)
  return systemd_service(command, config.exo_home, system)


def systemd_service(command: Sequence[str], home: Path, system: bool) -> Service:
  """A unit of the user's manager, or of the system's."""
  scope = () if system else ("--user", )
  folder = Path("/etc/systemd/system") if system else user_config_dir() / "systemd" / "user"
  network = "Wants=network-online.target\nAfter=network-online.target\n" if system else ""
  unit = f"""\
# Written by `exo service install`; `exo service remove` takes it away.
[Unit]
Description=exo node
{network}
[Service]
Environment={_quoted(f"EXO_HOME={home}")}
ExecStart={" ".join(map(_quoted, command))}
Restart=on-failure
RestartSec=2
# SIGTERM lets requests under way finish (--grace-period, 30 s)
TimeoutStopSec={_GRACE_S}
NoNewPrivileges=yes

[Install]
WantedBy={"multi-user.target" if system else "default.target"}
"""
  control = ("systemctl", *scope)
  return Service(
      folder / _NAME, unit.encode(), ((*control, "daemon-reload"), (*control, "enable", "--now", _NAME)),
      ((*control, "disable", "--now", _NAME), (*control, "daemon-reload")), (*control, "is-active", _NAME),
      f"journalctl {'' if system else '--user '}-u {_NAME} -o cat"
  )


def launchd_service(command: Sequence[str], home: Path, system: bool) -> Service:
  """An agent of the user, or a daemon."""
  folder = Path("/Library/LaunchDaemons") if system else user_home() / "Library" / "LaunchAgents"
  domain = "system" if system else f"gui/{os.getuid()}"
  log = home / ".exo" / "service.log"
  job = {
      "Label": _LABEL, "ProgramArguments": list(command), "EnvironmentVariables": {"EXO_HOME": str(home)},
      "RunAtLoad": True, "KeepAlive": {"SuccessfulExit": False}, "ExitTimeOut": _GRACE_S,
      "StandardOutPath": str(log), "StandardErrorPath": str(log)
  }  # yapf: disable
  file = folder / f"{_LABEL}.plist"
  return Service(
      file, plistlib.dumps(job), (("launchctl", "bootstrap", domain, str(file)), ),
      (("launchctl", "bootout", f"{domain}/{_LABEL}"), ), ("launchctl", "print", f"{domain}/{_LABEL}"), f"tail -f {log}"
  )


def _quoted(word: str) -> str:
  """As systemd reads it: % and $ stand for something there, quotes and blanks divide. Raises `ConfigError`."""
  if "\n" in word or "\0" in word:
    raise ConfigError(f"{word!r} cannot stand in a service: it has a line break")
  escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
  return f'"{escaped}"' if escaped != word or not word or any(letter in word for letter in " \t';#") else word


def _install(service: Service, write_only: bool) -> int:
  try:
    service.file.parent.mkdir(parents=True, exist_ok=True)
    service.file.write_bytes(service.text)
    service.file.chmod(0o600)  # a key may be among the flags
  except OSError as error:
    raise ConfigError(f"{service.file} cannot be written ({error.strerror})") from error
  print(f"wrote {service.file}")
  if not write_only:
    for command in service.begin:
      _must(command, f"{service.file} is written, but the system has not started it")
    print(
        f"the node runs, and starts with {'the system' if _is_system(service) else 'your session'}; its log: {service.logs}"
    )
    if not _is_system(service) and sys.platform != "darwin":
      print("loginctl enable-linger lets it run without you being logged in")
  return 0


def _remove(service: Service, write_only: bool) -> int:
  if not service.file.exists():
    raise ConfigError(f"there is no service: {service.file} does not exist")
  if not write_only:
    _run(service.end[0])  # one that does not run any more is no reason to keep its file
  try:
    service.file.unlink()
  except OSError as error:
    raise ConfigError(f"{service.file} cannot be deleted ({error.strerror})") from error
  if not write_only:
    for command in service.end[1:]:
      _run(command)
  print(f"deleted {service.file}")
  return 0


def _status(service: Service) -> int:
  if not service.file.exists():
    print(f"not installed ({service.file} does not exist): exo service install")
    return 1
  done = _run(service.status)
  runs = done is not None and done.returncode == 0
  state = "it runs" if runs else "it does not run" if done is not None else f"{service.status[0]} does not answer"
  print(f"installed ({service.file}), {state}; its log: {service.logs}")
  return 0 if runs else 1


def _is_system(service: Service) -> bool:
  return not service.file.is_relative_to(user_home())


def _must(command: Sequence[str], so: str) -> None:
  done = _run(command)
  if done is None or done.returncode:
    why = f"{command[0]} is not here" if done is None else (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise ExoError(f"{so} ({why}): {' '.join(command)}")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
  """None where there is no such program, or it does not answer."""
  if shutil.which(command[0]) is None:
    return None
  try:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_ASK_S, stdin=subprocess.DEVNULL, check=False
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
