"""Line 14, requirement 23: nothing that is shown or logged stops or fails a node, whatever becomes of its terminal, pipe or file."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from exo import log
from exo.text_writer import TextWriter
from test.support.disks import own_disk
from test.support.nodes import ROOT, NodeProcess, free_port, wait_until

DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy")


class Sick:
  """A node whose stdout and stderr are somebody's who does not read, or cannot be written at all."""
  def __init__(self, home: Path, kind: str, *flags: str, debug: str = "9") -> None:
    self.kind, self.reader = kind, -1
    port = str(free_port(socket.SOCK_DGRAM))
    command = [
        sys.executable, "-m", "exo", "--node-id",
        kind.replace(" ", "-"), *DUMMY, "--listen-port", port, "--broadcast-port", port, "--interface-type-filter",
        "loopback", "--chatgpt-api-port", "0", *flags
    ]
    if kind != "a terminal with the view":
      command.append("--disable-tui")
    self.home = home / kind.replace(" ", "-")
    env = os.environ | {"EXO_HOME": str(self.home), "DEBUG": debug, "TERM": "xterm-256color"}
    if kind == "closed descriptors":
      command = ["bash", "-c", 'exec "$@" >&- 2>&-', "x", *command]
    out = self._output()
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever ran these tests with nohup would have it ignored
    self.process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT, env=env, start_new_session=True
    )
    signal.signal(signal.SIGHUP, ours)
    os.close(out)
    if kind in ("a gone reader", "a terminal that is gone"):
      os.close(self.reader)

  def _output(self) -> int:
    if "terminal" in self.kind:
      self.reader, out = pty.openpty()
      fcntl.ioctl(out, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    elif self.kind == "a socket":
      ours, theirs = socket.socketpair()
      self.reader, out = ours.detach(), theirs.detach()
    elif self.kind == "a full disk":
      out = os.open("/dev/full", os.O_WRONLY)
    else:
      self.reader, out = os.pipe()
    return out

  def ready(self) -> NodeProcess:
    node = NodeProcess.__new__(NodeProcess)
    node.process, node.home, node.node_id, node.url = self.process, self.home, self.kind, ""
    node.log_path = Path(os.devnull)
    return node.wait_ready()

  def read_all(self) -> bytes:
    """What there is to read until nothing more comes."""
    os.set_blocking(self.reader, False)
    said, quiet_since = b"", time.monotonic()
    while time.monotonic() - quiet_since < 1:
      try:
        piece = os.read(self.reader, 1 << 16)
        said, quiet_since = said + piece, time.monotonic()
      except (BlockingIOError, OSError):
        time.sleep(0.02)
    return said

  def end(self) -> None:
    if self.process.poll() is None:
      self.process.kill()
    self.process.wait()
    with suppress(OSError):
      os.close(self.reader)


KINDS = [
    "a terminal with the view", "a pipe", "a gone reader", "a terminal that is gone", "a full disk",
    "closed descriptors"
]


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Sick]]:
  """One of each kind, started together."""
  home = tmp_path_factory.mktemp("sick")
  nodes = {kind: Sick(home, kind) for kind in KINDS}
  yield nodes
  for node in nodes.values():
    node.end()


@pytest.mark.parametrize("kind", KINDS)
def test_line_14_a_node_answers_and_ends_whatever_becomes_of_its_output(sick: dict[str, Sick], kind: str) -> None:
  _answers_and_ends(sick[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a terminal", "a socket"])
def test_line_14_the_same_for_others(tmp_path: Path, kind: str) -> None:
  one = Sick(tmp_path, kind)
  try:
    _answers_and_ends(one)
  finally:
    one.end()


def _answers_and_ends(one: Sick) -> None:
  kind, node = one.kind, one.ready()
  body = {"prompt": "hello", "temperature": 1.0, "seed": 1, "logit_bias": {"256": -100}}
  for _ in range(
      12 if kind == "a pipe" else 2
  ):  # more lines than a pipe or terminal holds, and there more than exo does
    status, answer = node.post("/v1/completions", {**body, "max_tokens": 300}, 20)
    assert status == 200 and answer["usage"]["completion_tokens"] == 300, answer
  status, _ = node.get("/health", 2)
  assert status == 200
  if kind == "a pipe":
    said = one.read_all().decode()
    lost = re.findall(r"(\d+) lines? of this log could not be written", said)
    assert lost and int(lost[0]) > 0, said[-2000:]
    # the count bears the time when it could be written
    stamps = re.findall(r"^(\d\d:\d\d:\d\d) \[\d\] (?!\d+ lines? of this log)", said, re.MULTILINE)
    assert stamps == sorted(stamps)
  # SIGHUP is what the end of a terminal is told with
  one.process.send_signal(signal.SIGHUP if "terminal" in kind else signal.SIGTERM)
  assert one.process.wait(60) == 0
  if kind == "a terminal with the view":
    assert b"GPU rich" in one.read_all()


def test_line_14_every_line_is_written_in_order_or_counted() -> None:
  """Many threads, a reader that sleeps, wakes and sleeps again."""
  reader, out = os.pipe()
  os.set_blocking(out, False)
  writer = TextWriter(out, "utf-8", lambda count: f"lost {count}\n")

  def write(name: int) -> None:
    for i in range(5000):
      writer.put(f"{name} {i} {'x' * 50}\n")

  threads = [threading.Thread(target=write, args=(name, )) for name in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(20)
    assert not thread.is_alive()
  read: list[bytes] = []
  draining = threading.Thread(target=lambda: read.extend(iter(lambda: os.read(reader, 65536), b"")))
  draining.start()
  writer.close(10)
  os.close(out)
  draining.join(10)
  os.close(reader)
  lines = b"".join(read).decode().splitlines()
  lost = sum(int(line.split()[1]) for line in lines if line.startswith("lost"))
  written = [line.split() for line in lines if not line.startswith("lost")]
  assert lost > 0 and len(written) + lost == 4 * 5000
  for name in range(4):
    numbers = [int(line[1]) for line in written if int(line[0]) == name]
    assert numbers == sorted(set(numbers)) and all(len(line[2]) == 50 for line in written)


def test_line_14_a_disk_that_was_full_goes_on_with_a_count(tmp_path: Path) -> None:
  file = tmp_path / "log"
  out = os.open("/dev/full", os.O_WRONLY)
  writer = TextWriter(out, "utf-8", lambda count: f"lost {count}\n")
  for i in range(7):
    writer.put(f"{i}\n")
  wait_until(lambda: writer.error is not None and not writer.waiting, 5, "the error")
  made = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
  os.dup2(made, out)  # now there is room
  writer.put("seven\n")
  writer.close(5)
  os.close(made)
  os.close(out)
  assert file.read_text() == "lost 7\nseven\n" and writer.error is None


def test_line_14_a_small_file_system_that_fills_and_is_cleared(tmp_path: Path) -> None:
  """A real one, whose disk fills in the middle of a line."""
  with own_disk(tmp_path / "small", "size=64k") as small:
    with (small / "log").open("ab") as file:
      writer = TextWriter(file.fileno(), "utf-8", lambda count: f"lost {count}\n")
      for i in range(3000):
        writer.put(f"line {i} {'y' * 400}\n")
      wait_until(lambda: not writer.waiting, 5, "the end of what is written")
      assert writer.error is not None
      (small / "log").rename(small / "old")
      os.truncate(small / "old", 0)
      writer.put("there is room\n")
      writer.close(5)
    lines = (small / "old").read_text().strip("\0").splitlines()
    assert lines[-2].startswith("lost ") and lines[-1] == "there is room"


def test_line_14_logging_never_raises(capsys: pytest.CaptureFixture[str]) -> None:
  class Bad:
    def __str__(self) -> str:
      raise KeyError("no text")

  log.set_level(1)
  try:
    for message, args in (("%d", ("x", )), ("%s", (Bad(), )), ("%s %s", ("one", )), ("\ud800 %s", ("\udfff", ))):
      log.log(1, message, *args)
    log.log(1, "%s", "z" * 10**6)
    log.say("\ud800")
    log.set_sink(lambda line: (_ for _ in ()).throw(OSError("gone")))
    log.log(0, "nobody")
    log.say("nobody")
  finally:
    log.set_sink(None)
    log.set_level(0)
  lines = capsys.readouterr().err.splitlines()
  assert "KeyError" in lines[1] and len(lines) == 6
  assert max(map(len, lines)) < 17000 and "more characters" in lines[4]


def _script(body: str, tmp_path: Path, **kw: object) -> subprocess.Popen[bytes]:
  file = tmp_path / "script.py"
  file.write_text("import os, sys, time\nfrom exo.standard_streams import never_waiting\nfrom exo import log\n" + body)
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  return subprocess.Popen([sys.executable, str(file)], cwd=ROOT, env=env, **kw)  # type: ignore[call-overload]


def test_line_14_what_is_written_in_c_does_not_wait_either(tmp_path: Path) -> None:
  """While the interpreter is held, as in a library: `PyDLL` calls do not let go of it."""
  body = """
import ctypes
with never_waiting(answers=False):
  for _ in range(3000):
    ctypes.PyDLL(None).dprintf(2, b"%s", b"native " * 20)
    ctypes.PyDLL(None).dprintf(1, b"%s", b"native " * 20)
    print("python", "x" * 200)
"""
  assert ctypes.PyDLL(None).dprintf is not None
  process = _script(body, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  try:
    assert process.wait(60) == 0
  finally:
    process.kill()
    process.communicate()


def test_line_14_a_crash_has_its_last_words(tmp_path: Path) -> None:
  """On a pipe: of Python, and of what ends the whole process."""
  raised = _script(
      "with never_waiting(answers=False):\n  raise KeyError('the reason')\n", tmp_path, stderr=subprocess.PIPE
  )
  assert b"KeyError: 'the reason'" in raised.communicate(timeout=60)[1] and raised.returncode == 1
  crashed = _script(
      "import ctypes\nwith never_waiting(answers=False):\n  log.say('before')\n  time.sleep(.3)\n  ctypes.string_at(0)\n",
      tmp_path,
      stderr=subprocess.PIPE
  )
  said = crashed.communicate(timeout=60)[1]
  assert crashed.returncode == -signal.SIGSEGV
  assert said.index(b"before") < said.index(b"Segmentation fault") < said.index(b"script.py")


def test_line_14_json_lines_stay_json(tmp_path: Path) -> None:
  body = """
import logging, warnings
log.set_format("json")
with never_waiting(answers=False):
  warnings.warn("a warning")
  logging.getLogger("asyncio").error("an error of a library")
  log.say("a line")
  for i in range(20000):
    log.log(0, "line %d", i)
  time.sleep(.5)
  sys.stdin.read(1)
"""
  process = _script(body, tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
  time.sleep(1)
  said = process.communicate(b"x", timeout=20)[1].decode()
  entries = [json.loads(line) for line in said.splitlines()]
  assert "a warning" in str(entries[0]) and any("an error of a library" in e["message"] for e in entries[:9])
  lost = [int(e["message"].split()[0]) for e in entries if "could not be written" in e["message"]]
  numbers = [int(e["message"].split()[1]) for e in entries if e["message"].startswith("line ")]
  assert lost and numbers == sorted(numbers) and len(numbers) + sum(lost) == 20000


def test_line_14_a_terminal_of_few_letters() -> None:
  done = subprocess.run([sys.executable, "-m", "exo", "--help"], cwd=ROOT, capture_output=True, check=False,
                        env=os.environ | {"PYTHONIOENCODING": "ascii"})  # yapf: disable
  assert done.returncode == 0 and b"\\u2026" in done.stdout and not done.stderr


def _run(tmp_path: Path, *arguments: str) -> list[str]:
  port = str(free_port(socket.SOCK_DGRAM))
  return [
      sys.executable, "-m", "exo", "run", *DUMMY, "--listen-port", port, "--broadcast-port", port,
      "--interface-type-filter", "loopback", "--default-temp", "0", *arguments
  ]


def test_line_14_exo_run_into_head_ends_quietly(tmp_path: Path) -> None:
  env = os.environ | {"EXO_HOME": str(tmp_path), "DEBUG": "0"}
  shell = '"$@" --prompt hello --max-tokens 400 | head -c 3; echo " ${PIPESTATUS[0]}"'
  done = subprocess.run(["bash", "-c", shell, "x", *_run(tmp_path)],
                        capture_output=True, text=True, env=env, cwd=ROOT, timeout=60, check=False)  # yapf: disable
  assert re.fullmatch(r".{3} (0|141)\n", done.stdout, re.DOTALL), done.stdout
  assert "Traceback" not in done.stderr and "Error" not in done.stderr and "rror:" not in done.stderr, done.stderr
  listed = subprocess.run(["bash", "-c", '"$@" models | head -1; "$@" models > /dev/full', "x", *_run(tmp_path)[:3]],
                          capture_output=True, text=True, env=env, cwd=ROOT, timeout=60, check=False)  # yapf: disable
  assert listed.stdout.startswith("MODEL") and "Traceback" not in listed.stderr, listed.stderr
  assert "the disk is full" in listed.stderr and listed.returncode == 1


def test_line_14_exo_run_waits_for_its_reader_but_its_node_does_not(tmp_path: Path) -> None:
  env = os.environ | {"EXO_HOME": str(tmp_path), "DEBUG": "0"}
  reader, out = os.pipe()
  fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, 4096)
  os.set_blocking(out, False)
  filling = 0
  with suppress(BlockingIOError):
    while True:
      filling += os.write(out, b"." * 256)
  os.set_blocking(out, True)
  process = subprocess.Popen(_run(tmp_path, "--prompt", "hello", "--max-tokens", "300"),
                             stdout=out, stderr=subprocess.DEVNULL, env=env, cwd=ROOT)  # yapf: disable
  os.close(out)
  try:
    files = wait_until(lambda: list((tmp_path / ".exo" / "nodes").glob("*.json")), 30, "the node")
    node = NodeProcess.__new__(NodeProcess)
    node.url = f"http://127.0.0.1:{json.loads(files[0].read_text())['api_port']}"
    until = time.monotonic() + 2
    while time.monotonic() < until:
      assert node.get("/health", 2)[0] == 200
      time.sleep(0.1)
    assert process.poll() is None  # it waits with the answer's end
    with os.fdopen(reader, "rb") as text:
      said = text.read()[filling:]
    assert process.wait(60) == 0 and len(said) > 200 and said.endswith(b"\n")
  finally:
    process.kill()
    process.wait()


def test_line_14_a_node_in_the_background_outlives_its_terminal(tmp_path: Path) -> None:
  """With `stty tostop`, as some have it, it is not stopped for writing; with `nohup` it stays when the terminal goes."""
  master, slave = pty.openpty()
  port = str(free_port(socket.SOCK_DGRAM))
  command = [
      sys.executable, "-m", "exo", "--node-id", "bg", *DUMMY, "--listen-port", port, "--broadcast-port", port,
      "--chatgpt-api-port", "0"
  ]
  shell = subprocess.Popen(
      ["setsid", "--ctty", "bash", "-c", 'stty tostop; set -m; trap "" HUP; "$@" & wait', "x", *command], stdin=slave, stdout=slave,
      stderr=slave, cwd=ROOT, env=os.environ | {"EXO_HOME": str(tmp_path), "DEBUG": "3", "TERM": "xterm"}
  )  # yapf: disable
  os.close(slave)
  pid = 0
  try:
    files = wait_until(lambda: list((tmp_path / ".exo" / "nodes").glob("*.json")), 30, "the node")
    info = json.loads(files[0].read_text())
    pid = info["pid"]
    node = NodeProcess.__new__(NodeProcess)
    node.url = f"http://127.0.0.1:{info['api_port']}"
    assert node.post("/v1/completions", {"prompt": "hello", "max_tokens": 9}, 20)[0] == 200
    time.sleep(1)
    assert node.get("/health", 5)[0] == 200
    assert "State:\tT" not in Path(f"/proc/{pid}/status").read_text()
    os.close(master)
    os.kill(pid, signal.SIGHUP)
    time.sleep(0.3)
    assert node.post("/v1/completions", {"prompt": "hello", "max_tokens": 9}, 20)[0] == 200
  finally:
    for one in (pid, shell.pid):
      with suppress(OSError):
        if one:
          os.kill(one, signal.SIGKILL)
    shell.wait()
    with suppress(OSError):
      os.close(master)
