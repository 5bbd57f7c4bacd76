"""Line 15 of issue 22: services, completion, the Dockerfile."""

from __future__ import annotations

import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exo.cli.commands import COMMANDS, command_line
from exo.cli.service_command import flags_of_node, launchd_service, systemd_service
from exo.errors import ConfigError
from test.support.nodes import ROOT, exo

ODD = ("--system-prompt", 'Say "100%" in $HOME; #1', "--node-port", "50051")


def needs(program: str) -> None:
  if shutil.which(program) is None:
    pytest.skip(f"{program} is not installed")


@pytest.mark.parametrize("system", [True, False])
def test_22_line_15_systemd_takes_the_unit(tmp_path: Path, system: bool) -> None:
  needs("systemd-analyze")
  service = systemd_service((sys.executable, "-m", "exo", *ODD), tmp_path / "my home", system)
  unit = tmp_path / "exo.service"
  unit.write_bytes(service.text)
  scope = [] if system else ["--user"]
  env = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
  done = subprocess.run(["systemd-analyze", *scope, "verify", str(unit)], env=env, capture_output=True, text=True,
                        check=False)  # yapf: disable
  assert done.returncode == 0 and "exo.service" not in done.stderr, done.stderr
  assert 'EXO_HOME="' not in service.text.decode() and "100%%" in service.text.decode(
  ) and "$$HOME" in service.text.decode()


def test_22_line_15_launchd_gets_every_word_as_it_is(tmp_path: Path) -> None:
  for system, folder in ((True, "/Library/LaunchDaemons"), (False, str(Path.home() / "Library" / "LaunchAgents"))):
    service = launchd_service(("exo", *ODD), tmp_path, system)
    job = plistlib.loads(service.text)
    assert job["ProgramArguments"] == ["exo", *ODD] and job["EnvironmentVariables"] == {"EXO_HOME": str(tmp_path)}
    assert job["RunAtLoad"] is True and str(service.file) == f"{folder}/exo.node.plist"


def test_22_line_15_what_a_service_cannot_hold_is_refused(tmp_path: Path) -> None:
  with pytest.raises(ConfigError, match="line break"):
    systemd_service(("exo", "a\nExecStartPre=/bin/false"), tmp_path, False)


def test_22_line_15_flags_are_the_nodes() -> None:
  words = ["install", "--system", "--node-id", "status", "--write-only", "--chatgpt-api-port", "0"]
  assert flags_of_node(words, "install") == ["--node-id", "status", "--chatgpt-api-port", "0"]


def test_22_line_15_install_status_and_remove(tmp_path: Path) -> None:
  env = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "HOME": str(tmp_path)}
  file = tmp_path / "config" / "systemd" / "user" / "exo.service"
  if sys.platform == "darwin":
    file = tmp_path / "Library" / "LaunchAgents" / "exo.node.plist"
  assert exo(tmp_path, "service", "remove", **env).stderr.startswith("exo: there is no service")
  assert "not installed" in exo(tmp_path, "service", "status", **env).stdout
  done = exo(tmp_path, "service", "install", "--write-only", "--node-port", "50051", **env)
  assert done.returncode == 0 and done.stdout == f"wrote {file}\n" and file.stat().st_mode & 0o777 == 0o600
  assert b"--disable-tui --node-port 50051\n" in file.read_bytes() or sys.platform == "darwin"
  told = exo(tmp_path, "service", "status", **env)
  assert told.returncode == 1 and told.stdout.startswith(f"installed ({file}), ")
  assert exo(tmp_path, "service", "remove", "--write-only", **env).returncode == 0 and not file.exists()
  wrong = exo(tmp_path, "service", "install", "--write-only", "--node-prt", "1", **env)
  assert wrong.returncode == 2 and "did you mean --node-port?" in wrong.stderr and not file.exists()


@pytest.fixture
def script(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest, tmp_path: Path) -> Path:
  needs(request.param)
  assert command_line(["completion", request.param]) == 0
  file = tmp_path / f"complete.{request.param}"
  file.write_text(capsys.readouterr().out)
  return file


CASES = [("exo mo", {"models"}), ("exo run --max-to", {"--max-tokens"}), ("exo run --quantize ", {"none", "8", "4"}),
         ("exo launch cl", {"claude"}), ("exo help ver", {"version"}), ("exo --discovery-module ma", {"manual"}),
         ("exo completion f", {"fish"})]  # yapf: disable


@pytest.mark.parametrize("script", ["bash", "zsh", "fish"], indirect=True)
def test_22_line_15_shells_complete(script: Path) -> None:
  shell = script.suffix[1:]
  for line, wanted in CASES:
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    typed = " ".join(map(shlex.quote, words))
    code = {
        "bash": f". {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _exo; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        "zsh": f"compdef() {{ :; }}; compadd() {{ shift; print -l -- $@; }}; . {script}; words=({typed}); CURRENT={len(words)}; _exo",
        "fish": f"source {script}; complete -C {shlex.quote(line)}",
    }[shell]
    done = subprocess.run([shell, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    found = {text.split("\t")[0] for text in done.stdout.splitlines()}
    if shell == "zsh":  # which leaves it to compadd to choose those that begin so
      found = {text for text in found if text.startswith(words[-1])}
    assert found == wanted and done.stderr == "", (line, found, done.stderr)


def test_22_line_15_completion_knows_every_command() -> None:
  for shell in ("bash", "zsh", "fish"):
    done = subprocess.run([sys.executable, "-m", "exo", "completion", shell], cwd=ROOT, capture_output=True, text=True,
                          check=True)  # yapf: disable
    assert all(re.search(rf"\b{name}\b", done.stdout) for name in COMMANDS)


def test_22_line_15_the_dockerfile_copies_what_there_is_and_starts_what_there_is() -> None:
  text = (ROOT / "Dockerfile").read_text()
  for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
    assert all((ROOT / name).exists() for name in line.split())
  assert re.search(r"^USER 10001$", text, re.MULTILINE) and "EXPOSE 52415/tcp 5678/udp" in text
