"""Keys on the command line, joining by token with real nodes, and the audit of dependencies."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from exo.cli.key_command import join, key_command
from exo.config import config_from
from exo.errors import ConfigError
from exo.networking.cluster_key import read_key_file
from exo.networking.join_token import JoinToken, decode_token, encode_token
from test.support.clusters import KEY, OTHER_KEY
from test.support.nodes import ROOT, NodeProcess, free_port, wait_until

BASE = ("--inference-engine", "dummy", "--default-model", "dummy")


def key(home: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
  assert key_command(list(arguments), {"EXO_HOME": str(home)}) == 0
  return capsys.readouterr().out.strip()


def test_01_keys_are_made_changed_over_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
  path = tmp_path / ".exo" / "cluster.key"
  assert key(tmp_path, capsys, "new") == ""
  (first, ) = read_key_file(path)
  assert key(tmp_path, capsys, "show") == first and path.stat().st_mode & 0o777 == 0o600
  with pytest.raises(ConfigError, match="already"):
    key(tmp_path, capsys, "new")
  second = key(tmp_path, capsys, "add")
  assert read_key_file(path) == (first, second)
  with pytest.raises(ConfigError, match="being changed|no node"):
    key(tmp_path, capsys, "token")
  key(tmp_path, capsys, "use")
  assert read_key_file(path) == (second, first)
  key(tmp_path, capsys, "drop")
  assert read_key_file(path) == (second, )
  for action in ("use", "drop"):
    with pytest.raises(ConfigError, match="only one key"):
      key(tmp_path, capsys, action)


def test_10_api_keys_are_made_listed_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
  text = key(tmp_path, capsys, "api", "new", "laptop")
  assert len(text) > 40 and text not in (tmp_path / ".exo" / "api_keys.json").read_text()
  assert key(tmp_path, capsys, "api", "ls").startswith("laptop ")
  key(tmp_path, capsys, "api", "rm", "laptop")
  assert key(tmp_path, capsys, "api", "ls") == ""
  with pytest.raises(ConfigError, match="no API key named"):
    key(tmp_path, capsys, "api", "rm", "laptop")


def test_01_tokens_that_were_cut_or_mistyped_are_refused(tmp_path: Path) -> None:
  text = encode_token(JoinToken(("10.0.0.1:5000", "[fd00::1]:5000"), KEY))
  assert decode_token(f" {text}\n") == JoinToken(("10.0.0.1:5000", "[fd00::1]:5000"),
                                                 KEY) and KEY not in repr(decode_token(text))
  for wrong in (
      "", "exo1.", text[:-1], text[:20], text.replace("exo1.", ""), text[:30] + "x" + text[31:], text + "AAAA"
  ):
    with pytest.raises(ConfigError, match="not a join token"):
      decode_token(wrong)
  config = config_from({}, {"EXO_HOME": str(tmp_path)})
  join(config, text)
  join(config, None, lambda: text)  # again, from stdin: nothing changes
  with pytest.raises(ConfigError, match="another cluster key"):
    join(config, encode_token(JoinToken(("10.0.0.1:5000", ), OTHER_KEY)))
  assert read_key_file(tmp_path / ".exo" / "cluster.key") == (KEY, )


def test_01_join_adds_a_machine_in_one_command(tmp_path: Path) -> None:
  """Two nodes that no beacon connects: the token is all that the second is given, and its next start needs none."""
  def run(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "exo", *arguments],
                          cwd=ROOT,
                          capture_output=True,
                          text=True,
                          timeout=60,
                          check=False,
                          env={"EXO_HOME": str(home), "PATH": "/usr/bin:/bin"})

  one, two = tmp_path / "one", tmp_path / "two"
  assert run("key", "token", home=one).returncode == 1
  assert run("key", "new", home=one).returncode == 0
  first = NodeProcess(one, *BASE, "--discovery-module", "none", node_id="first").wait_ready()
  try:
    done = run("key", "token", home=one)
    if "no address that another one could reach" in done.stderr:
      pytest.skip("this machine has no address but loopback")
    assert done.returncode == 0, done.stderr
    token = done.stdout.strip()
    for arguments in (("join", token), ()):
      command = [*arguments, *BASE, "--discovery-module", "none"]
      second = NodeProcess(two, *command, node_id="second")
      second.wait_ready()
      try:
        wait_until(lambda node=second: node.peers() == {"first", "second"}, 20, "the joining")
        assert second.chat("hello", max_tokens=3)[0] == 200
      finally:
        second.stop()
    assert token not in first.log + second.log and decode_token(token).key not in first.log + second.log
  finally:
    first.stop()


class Advisories(BaseHTTPRequestHandler):
  """osv.dev with one advisory, against aiohttp."""
  def do_POST(self) -> None:
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    bad = [query["package"]["name"] == "aiohttp" for query in body["queries"]]
    self._send({"results": [{"vulns": [{"id": "X-1"}]} if b else {} for b in bad]})

  def do_GET(self) -> None:
    self._send({"id": "X-1", "summary": "something dire"})

  def log_message(self, format: str, *args: object) -> None:
    pass

  def _send(self, value: object) -> None:
    data = json.dumps(value).encode()
    self.send_response(200)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)


def test_the_audit_reports_advisories_and_says_when_it_could_not_ask() -> None:
  def audit(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "scripts/audit.py", "--url", url],
                          cwd=ROOT,
                          capture_output=True,
                          text=True,
                          timeout=60,
                          check=False)

  server = HTTPServer(("127.0.0.1", 0), Advisories)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    done = audit(f"http://127.0.0.1:{server.server_address[1]}")
    assert done.returncode == 1 and "X-1 something dire" in done.stdout and "1 with advisories" in done.stdout
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
  closed = audit(f"http://127.0.0.1:{free_port(socket.SOCK_STREAM)}")
  assert closed.returncode == 2 and "nothing was audited" in closed.stderr
