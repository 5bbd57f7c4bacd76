"""Line 3 of issue 22: the chat of `exo run` as a user types into it, and standard input beside a prompt."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from exo.cli.chat_commands import COMMANDS, HELP, ChatCommands, Leave, completions
from exo.cli.conversation import Conversation, read_conversation
from exo.errors import ConfigError, ExoError
from test.support.nodes import ROOT, NodeProcess, free_port

DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy")
PROMPT = "> "


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  """One that every chat here talks to; its log tells what it was asked."""
  flags = (*DUMMY, "--discovery-module", "none", "--model-dir", str(ROOT / "test" / "data" / "goldens"))
  one = NodeProcess(tmp_path_factory.mktemp("chat"), *flags, node_id="here").wait_ready()
  yield one
  one.stop()


class Chat:
  """`exo run` on a terminal of its own."""
  def __init__(self, node: NodeProcess | Path, *arguments: str, size: tuple[int, int] = (24, 80)) -> None:
    home = node if isinstance(node, Path) else node.home
    own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}  # the terminal tells
    env = own | {"EXO_HOME": str(home), "DEBUG": "0", "TERM": "xterm"}
    self.child = pexpect.spawn(
        sys.executable, ["-m", "exo", "run", *arguments], cwd=str(ROOT), env=env, timeout=30, dimensions=size,
        encoding="utf-8", codec_errors="replace"
    )  # yapf: disable

  def __enter__(self) -> Chat:
    self.until(PROMPT)
    return self

  def __exit__(self, *_: object) -> None:
    self.child.close(force=True)

  def until(self, text: str) -> str:
    """What is shown before it."""
    self.child.expect_exact(text)
    return str(self.child.before)

  def say(self, line: str) -> str:
    """Type a line; what is shown until the next prompt."""
    self.child.sendline(line)
    self.child.expect_exact(line[-20:])  # the echo
    self.child.expect("\n(\x1b\\[\\?2004h)?> ")
    return str(self.child.before)

  def status(self) -> int:
    self.child.expect(pexpect.EOF)
    self.child.close()
    return int(self.child.exitstatus)


def test_22_line_3_a_chat_from_help_to_bye(node: NodeProcess, tmp_path: Path) -> None:
  saved = tmp_path / "talk.json"
  with Chat(node, "--max-tokens", "5") as chat:
    help_ = chat.say("/help")
    assert all(name.split()[0] in help_ for name in HELP)
    assert "5 tokens" in chat.say("Hello there")
    assert "the system prompt is set" in chat.say("/system Be brief.")
    assert "temperature is 0.5" in chat.say("/set temperature 0.5")
    assert "expected float <= 2.0" in chat.say("/set temperature 9")
    assert "did you mean /clear?" in chat.say("/claer")
    assert "tokens" in chat.say("//etc is a folder")
    assert f"kept in {saved}" in re.sub(r"\s+", " ", chat.say(f"/save {saved}"))
    assert "forgotten" in chat.say("/clear")
    assert "4 messages" in chat.say(f"/load {saved}")
    chat.child.sendline("/bye")
    assert chat.status() == 0
  kept = json.loads(saved.read_text())
  assert [m["role"] for m in kept["messages"]] == ["system", "user", "assistant", "user", "assistant"]
  assert kept["messages"][0]["content"] == "Be brief." and kept["messages"][3]["content"] == "/etc is a folder"
  assert kept["settings"] == {"temperature": 0.5, "max_tokens": 5}
  assert saved.stat().st_mode & 0o777 == 0o600


def test_22_line_3_several_lines_are_one_message(node: NodeProcess) -> None:
  with Chat(node, "--max-tokens", "2") as chat:
    chat.child.sendline('"""one')
    chat.until("... ")
    chat.child.sendline("two")
    chat.until("... ")
    chat.child.sendline('three"""')
    chat.until("tokens/s")
    chat.until(PROMPT)
    chat.child.sendline("four\\")
    chat.until("... ")
    chat.child.sendline("five")
    chat.until("tokens/s")
    chat.until(PROMPT)
    chat.child.send("\x1b[200~six\nseven\x1b[201~\n")  # as terminals paste
    chat.until("tokens/s")
    chat.until(PROMPT)
    assert "kept" in chat.say("/save lines")
    chat.child.sendline("/load")
    assert "lines" in chat.until(PROMPT)
  kept = json.loads((node.home / ".exo" / "chats" / "lines.json").read_text())
  said = [m["content"] for m in kept["messages"] if m["role"] == "user"]
  assert said == ["one\ntwo\nthree", "four\nfive", "six\nseven"]


def test_22_line_3_what_was_typed_is_remembered_and_completed(node: NodeProcess) -> None:
  with Chat(node, "--max-tokens", "2") as chat:
    chat.say("the first thing")
    chat.child.sendeof()
    assert chat.status() == 0
  assert (node.home / ".exo" / "chat_history").stat().st_mode & 0o777 == 0o600
  with Chat(node, "--max-tokens", "2") as chat:
    chat.child.send("\x1b[A")  # up
    chat.until("the first thing")
    chat.child.send("\x15/cl\t")
    chat.until("/clear")
    chat.child.sendline("")
    chat.until("forgotten")


def test_22_line_3_ctrl_c_twice_leaves(node: NodeProcess) -> None:
  with Chat(node) as chat:
    for _ in range(2):  # what was typed in between takes the first one back
      chat.child.send("half a line")
      chat.until("half a line")
      chat.child.sendintr()
      chat.until("(Ctrl-C once more")
      chat.until(PROMPT)
      chat.say("/model")
    chat.child.sendintr()
    chat.until("(Ctrl-C once more")
    chat.until(PROMPT)
    chat.child.sendintr()
    assert chat.status() == 0


def test_22_line_3_ctrl_c_stops_an_answer(model_home: Path) -> None:
  port = str(free_port(socket.SOCK_DGRAM))
  with Chat(model_home, "--default-temp", "0", "--listen-port", port, "--broadcast-port", port) as chat:
    chat.child.sendline("Tell me a very long story about a dragon.")
    chat.until("dragon.")
    chat.child.expect("[a-z].{20}")
    chat.child.sendintr()
    chat.until("(stopped)")
    chat.until(PROMPT)
    assert "default model" in chat.say("/model")
    chat.child.sendeof()
    assert chat.status() == 0


@pytest.mark.parametrize("size", [(24, 80), (15, 40)])
def test_22_line_3_help_fits_a_small_terminal(node: NodeProcess, size: tuple[int, int]) -> None:
  with Chat(node, size=size) as chat:
    lines = chat.say("/help").splitlines()
    assert len(lines) > len(HELP) and max(len(line.strip("\r")) for line in lines) < size[1]


def test_22_line_3_an_unknown_model_is_said_at_once_with_the_nearest(node: NodeProcess) -> None:
  for words, message in ((("gemma", "Hi there"), "Did you mean"), (("lama", ), "exo run --prompt \"lama\"")):
    done = run(node, *words)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr and "there is no model" in done.stderr and "GET /v1" not in done.stderr
  with Chat(node) as chat:
    assert "Did you mean" in chat.say("/model lama")
    assert "llama answers" in chat.say("/model llama")


def run(node: NodeProcess, *words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
  stdin = {"input": given} if given is not None else {"stdin": subprocess.DEVNULL}
  return subprocess.run([sys.executable, "-m", "exo", "run", *words],
                        cwd=ROOT, env=os.environ | {"EXO_HOME": str(node.home), "DEBUG": "0"}, capture_output=True,
                        text=True, timeout=60, check=False, **stdin)  # type: ignore[call-overload,no-any-return]  # yapf: disable


@pytest.mark.parametrize(("words", "given", "prompt"), [
    (("Sum it up:", ), "one\ntwo\n", "Sum it up:\n\none\ntwo"),
    (("dummy", "Sum", "-"), "ä", "Sum\n\nä"),
    (("-", ), "one\n\ntwo\n", "one\n\ntwo"),
])
def test_22_line_3_standard_input_comes_after_the_prompt(
    node: NodeProcess, words: tuple[str, ...], given: str, prompt: str
) -> None:
  flags = ("--max-tokens", "4", "--default-temp", "0")
  told, plain = run(node, *words, *flags, given=given), run(node, "--prompt", prompt, *flags)
  assert told.returncode == 0 and told.stdout == plain.stdout != run(node, *words[:1], *flags).stdout, told.stderr


def test_22_line_3_standard_input_that_is_none(node: NodeProcess) -> None:
  for given, words, message in (("a\0b", ("Sum up", ), "NUL bytes"), ("", ("-", ), "the prompt is empty"),
                                ("x" * (17 << 20), ("Sum up", ), "more than 16 MB")):
    done = run(node, *words, given=given)
    assert done.returncode == 1 and message in done.stderr and done.stdout == ""


@pytest.mark.parametrize("kind", ["a pipe", "a socket"])
def test_22_line_3_a_pipe_that_nobody_writes_to_is_left_alone(kind: str) -> None:
  """As programs have it that start others: it is said that it is waited for, and then that it is not any more."""
  ends = [end.detach() for end in socket.socketpair()] if kind == "a socket" else os.pipe()
  code = "from exo.cli import chat_input as c; c._PATIENCE_S = c._TELL_S = .2; print(repr(c.text_beside({})))"
  try:
    for waits in (False, True):
      process = subprocess.Popen([sys.executable, "-c", code.format(waits)],
                                 cwd=ROOT, stdin=ends[0], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)  # yapf: disable
      assert process.stderr is not None and b"waiting for standard input" in process.stderr.readline()
      if waits:  # who asks for it gets it, however late
        os.write(ends[1], b"late")
        os.close(ends[1])
      out, err = process.communicate(timeout=60)
      assert (out, b"going on without it" in err) == ((b"'late'\n", False) if waits else (b"''\n", True))
  finally:
    os.close(ends[0])


def test_22_line_3_commands_in_lines_of_a_pipe(node: NodeProcess) -> None:
  done = run(node, "--max-tokens", "3", given="/set seed 4\nHello\n/bye\nnever asked\n")
  assert done.returncode == 0 and "seed is 4" in done.stderr and done.stderr.count("tokens/s") == 1


# what lines do to a conversation, without a node


def commands(tmp_path: Path) -> ChatCommands:
  def find(name: str) -> str:
    if name != "m":
      raise ExoError(f"there is no model {name!r}")
    return name

  return ChatCommands(Conversation(), tmp_path / "chats", find)


def test_22_line_3_a_chat_is_kept_and_found_again(tmp_path: Path) -> None:
  chat = commands(tmp_path)
  for line in ("/system Be brief.", "/set top_k 5", '/set stop ["a", "b"]', "/model m"):
    chat.run(line)
  chat.talk.messages.append({"role": "user", "content": "Grüße\n😀"})
  assert chat.run("/save one") and chat.run("/save one")  # its own file is written anew
  other = commands(tmp_path)
  with pytest.raises(ConfigError, match="there is a chat one already"):
    other.run("/save one")
  with pytest.raises(ConfigError, match="did you mean one"):
    other.run("/load onne")
  assert other.run("/load") == "one" and "1 messages" in str(other.run("/load one"))
  assert other.talk == chat.talk and other.talk.messages is not chat.talk.messages
  other.run("/set top_k none")
  other.run("/clear")
  assert other.talk.settings == {"stop": ["a", "b"]
                                 } and other.talk.whole == [{"role": "system", "content": "Be brief."}]
  assert completions("/load o", lambda: ["one"]) == ["one"] and completions("/cl", list) == ["/clear"]
  assert completions("hello", list) == [] and "temperature" in completions("/set ", list)


@pytest.mark.parametrize(("line", "message"), [
    ("/save", "needs a name"), ("/save /proc/x.json", "cannot be written"), ("/save .hidden", "cannot be a chat's name"),
    ("/set colour red", "colour cannot be set: choose from temperature"), ("/set top_p", "needs a value"),
    ("/set top_p warm", "takes a number, not 'warm'"), ("/set top_p 3", "top_p: expected float <= 1.0"),
    ("/model other", "there is no model 'other'"), ("/load nothing", "there is no chat nothing"),
    ("/load ~no-such-user/x.json", "cannot be found"), ("/hlep", "did you mean /help?"), ("/xyzzy", "/help shows"),
])  # yapf: disable
def test_22_line_3_what_cannot_be_done_is_said_and_changes_nothing(tmp_path: Path, line: str, message: str) -> None:
  chat = commands(tmp_path)
  with pytest.raises(ExoError, match=re.escape(message)):
    chat.run(line)
  assert chat.talk == Conversation()


def test_22_line_3_lines_that_are_no_commands(tmp_path: Path) -> None:
  chat = commands(tmp_path)
  for line in ("hello", "/etc/passwd is a file", "//set x", "", "/ 2", "2 / 3"):
    assert chat.run(line) is None
  for line in ("/bye", "/quit", "/BYE"):
    with pytest.raises(Leave):
      chat.run(line)
  assert set(COMMANDS) == {"/help", "/bye", "/clear", "/system", "/model", "/save", "/load", "/set"}


@pytest.mark.parametrize(
    "text", [
        "", "{}", '{"messages": 1}', '{"messages": [{"role": "user"}]}', "\udcff",
        '{"messages": [], "settings": {"temperature": "hot"}}'
    ]
)
def test_22_line_3_a_file_that_is_no_chat(tmp_path: Path, text: str) -> None:
  path = tmp_path / "x.json"
  path.write_bytes(text.encode(errors="surrogateescape"))
  with pytest.raises(ConfigError):
    read_conversation(path)
  with pytest.raises(ConfigError, match="cannot be read"):
    read_conversation(tmp_path)
