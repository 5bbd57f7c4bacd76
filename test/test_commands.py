"""Line 3 of issue 22: every command's own help, and mistakes that name what was meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import exo
from exo.cli.commands import COMMANDS, command_line
from exo.cli.run_words import RunWords, run_words
from exo.cli.summaries import ELSEWHERE, SUMMARIES
from exo.errors import ConfigError
from test.support.nodes import ROOT


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
  """The exit status and what went to stdout and stderr; nothing of this starts a node."""
  try:
    status = command_line(words)
  except SystemExit as end:
    assert isinstance(end.code, int)
    status = end.code
  got = capsys.readouterr()
  return status, got.out, got.err


@pytest.mark.parametrize("name", SUMMARIES)
def test_22_line_3_each_command_has_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
  for words in ((name, "--help"), (name, "-h"), ("help", name)):
    status, out, _ = said(capsys, *words)
    assert status == 0 and out.startswith(f"usage: exo {name}"), out
    assert (name == "run") == ("--max-tokens N        at most" in out)
    assert "--trusted-proxy" not in out and len(out.splitlines()) < 60


def test_22_line_3_the_help_of_exo_names_every_command_and_every_flag_of_a_node(
    capsys: pytest.CaptureFixture[str]
) -> None:
  _, out, _ = said(capsys, "--help")
  assert set(COMMANDS) == set(SUMMARIES)
  for name, summary in SUMMARIES.items():
    assert f"  {name:<12}{summary}" in out
  for flag in ("--node-id", "--trusted-proxy", "--chatgpt-api-port", "--model-dir"):
    assert flag in out
  assert said(capsys, "help")[1] == out


@pytest.mark.parametrize("width", [40, 80])
def test_22_line_3_help_fits_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setenv("COLUMNS", str(width))
  for name in COMMANDS:
    _, out, _ = said(capsys, name, "--help")
    prose = [line for line in out.splitlines() if not line.startswith((" ", "usage"))]
    assert max(map(len, prose)) <= width, name


@pytest.mark.parametrize(("words", "message"), [
    (("list", ), "exo: there is no command list; did you mean exo models?\n"),
    (("ps", ), "exo: there is no command ps; did you mean exo status?\n"),
    (("modles", ), "exo: there is no command modles; did you mean exo models?\n"),
    (("serve", ), "exo: there is no command serve: `exo` alone starts a node\n"),
    (("smollm2-135m", ), "exo: there is no command smollm2-135m, but a model: exo run smollm2-135m\n"),
    (("What is 2 + 2?", ), 'exo: a prompt comes after the command run: exo run "…"\n'),
    (("xyzzy", ), "exo: there is no command xyzzy; exo --help shows those there are\n"),
    (("help", "staus"), "exo: there is no command staus; did you mean exo status?\n"),
    (("--nod-id", "x"), "exo: there is no flag --nod-id; did you mean --node-id? "),
    (("run", "--promt", "x"), "exo run: there is no flag --promt; did you mean --prompt? "),
    (("run", "--max-token=4"), "exo run: there is no flag --max-token; did you mean --max-tokens? "),
    (("--node-id", "a", "run", "--promt"), "exo run: there is no flag --promt; did you mean --prompt? "),
    (("models", "--prompt", "x"), "exo models: there is no flag --prompt "),
    (("models", "a", "b"), "exo models: nothing is expected after what it has, so not 'b' "),
    (("pull", ), "exo pull: it needs MODEL "),
    (("run", "--max-tokens", "many"), "exo run: --max-tokens takes a whole number, not 'many' "),
    (("run", "--prompt"), "exo run: --prompt needs a value after it "),
    (("engine", "bild"), "exo engine: action cannot be 'bild': did you mean build? "),
    (("key", "aip"), "exo key: ACTION cannot be 'aip': did you mean api? "),
    (("launch", "cluade"), "exo launch: agent cannot be 'cluade': did you mean claude? "),
    (("models", "--json=yes"), "exo models: --json takes no value, so not 'yes' "),
    (("--kv-type", "q9"), "exo: --kv-type: "),
])
def test_22_line_3_a_mistake_is_one_line_with_what_was_meant(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
  status, out, err = said(capsys, *words)
  assert status == 2 and out == ""
  assert err.startswith(message) and err.count("\n") == 1, err
  if not message.endswith("\n"):
    assert err.endswith("--help` shows what there is)\n")


def test_22_line_3_what_others_call_a_command_is_one_of_ours() -> None:
  assert not set(ELSEWHERE) & set(SUMMARIES)
  assert {name.split()[0] for name in ELSEWHERE.values()} <= set(SUMMARIES)


def test_22_line_3_version_is_a_command_and_a_flag() -> None:
  for words in (["version"], ["--version"]):
    done = subprocess.run([sys.executable, "-m", "exo", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"exo {exo.__version__}\n" and not done.stderr


def meant(*words: str) -> RunWords:
  return run_words(COMMANDS["run"].parser().parse_args(words))


def test_22_line_3_a_text_with_blanks_is_a_prompt_and_a_word_is_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  assert meant() == RunWords(None, None, False, False)
  assert meant("What is 2 + 2?") == RunWords(None, "What is 2 + 2?", False, False)
  assert meant("llama-3.2-3b") == RunWords("llama-3.2-3b", None, False, True)
  assert meant("llama-3.2-3b", "Hello") == RunWords("llama-3.2-3b", "Hello", False, False)
  assert meant("llama-3.2-3b", "--max-tokens", "4", "Hi there") == RunWords("llama-3.2-3b", "Hi there", False, False)
  assert meant("m", "--prompt", "Hi") == RunWords("m", "Hi", False, False)
  assert meant("--model", "m", "Hi") == meant("--run-model", "m", "--prompt", "Hi") == RunWords("m", "Hi", False, False)
  assert meant("a b", "-") == RunWords(None, "a b", True, False)
  assert meant("- one\n- two") == RunWords(None, "- one\n- two", False, False)
  assert meant("é" * 5000 + " x").prompt == "é" * 5000 + " x"
  (tmp_path / "my models").mkdir()
  monkeypatch.chdir(tmp_path)
  assert meant("my models") == RunWords("my models", None, False, True)


@pytest.mark.parametrize(("words", "message"), [
    (("tell", "me", "more"), 'stands in quotes: exo run "tell me more"'),
    (("a b", "--prompt", "c"), "two prompts"),
    (("m", "Hi", "--prompt", "c"), "say two things"),
    (("m", "Hi", "--model", "n"), "say two things"),
    (("", ), "the model's name is empty"),
])
def test_22_line_3_words_that_say_two_things(words: tuple[str, ...], message: str) -> None:
  with pytest.raises(ConfigError, match=message):
    meant(*words)
