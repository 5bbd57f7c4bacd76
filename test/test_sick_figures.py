"""Line 15, the system's own figures: what cannot be read is left out, and never ends a start, a heartbeat or a request."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from test.support.nodes import ROOT, NodeProcess, free_port, wait_until

DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy")
# what a start asks of the system, and an error that it was seen, or is documented, to raise somewhere
FIGURES = {
    "psutil.virtual_memory": 'psutil.AccessDenied(1)',
    "psutil.Process.__init__": 'psutil.AccessDenied(1)',
    "psutil.Process.memory_info": "NotImplementedError()",
    "psutil.Process.create_time": "FileNotFoundError(2, 'no /proc')",
    "psutil.cpu_percent": "PermissionError(13, 'no /proc/stat')",
    "psutil.cpu_freq": "NotImplementedError()",
    "psutil.net_if_addrs": "PermissionError(13, 'netlink')",
    "psutil.net_if_stats": "PermissionError(13, 'netlink')",
    "ifaddr.get_adapters": "OSError(13, 'netlink')",
    "os.sched_getaffinity": "PermissionError(1, 'seccomp')",
    "os.getloadavg": "OSError(38, 'no load')",
    "os.sysconf": "ValueError('unrecognized')",
    "os.getlogin": "OSError(6, 'no tty')",
    "socket.gethostname": "OSError(38, 'no name')",
    "socket.getfqdn": "UnicodeError('label too long')",
    "socket.if_nameindex": "OSError(13, 'netlink')",
    "shutil.disk_usage": "OSError(38, 'no statvfs')",
    "resource.getrlimit": "OSError(1, 'seccomp')",
    "pathlib.Path.read_text": "PermissionError(13, 'closed')",
    "pathlib.Path.home": "RuntimeError('no home')",
}
# of libraries that parse what a system shows
ODD = ("RuntimeError('odd')", "KeyError('MemTotal')", "AttributeError('not of this system')")


def patched(folder: Path, figures: dict[str, str]) -> dict[str, str]:
  """The environment of a process in which these raise (files only those of the system)."""
  lines = ["import ifaddr, os, pathlib, psutil, resource, shutil, socket"]
  for i, (name, error) in enumerate(figures.items()):
    lines += [f"_f{i} = {name}", f"def _raise{i}(*a, **k):"]
    if name == "pathlib.Path.read_text":
      lines.append(f"  if not str(a[0]).startswith(('/proc', '/sys', '/etc', '/var')): return _f{i}(*a, **k)")
    if name == "os.sysconf":  # the standard library asks it for other things too
      lines.append(f"  if 'PAGES' not in str(a[0]): return _f{i}(*a, **k)")
    lines += [f"  raise {error}", f"{name} = _raise{i}"]
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "sitecustomize.py").write_text("\n".join(lines) + "\n")
  return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def flags() -> tuple[str, ...]:
  port = str(free_port(socket.SOCK_DGRAM))
  return (*DUMMY, "--listen-port", port, "--broadcast-port", port)


def exo(home: Path, env: dict[str, str], *arguments: str) -> str:
  done = subprocess.run([sys.executable, "-m", "exo", *arguments],
                        cwd=ROOT, env=os.environ | {"EXO_HOME": str(home)} | env,
                        capture_output=True, text=True, timeout=60, check=False)  # yapf: disable
  assert "Traceback" not in done.stderr, done.stderr
  return done.stdout


def ready(node: NodeProcess) -> NodeProcess:
  """By its log: the name of its runtime file has to do with figures that it may lack."""
  node.url = f"http://127.0.0.1:{wait_until(lambda: _api_port(node), 30, 'the API address in the log')}"
  wait_until(lambda: node.get("/healthcheck", 2)[0] == 200, 30, "health")
  return node


def _api_port(node: NodeProcess) -> int:
  found = re.search(r"http://127\.0\.0\.1:(\d+)", node.log)
  return int(found[1]) if found else 0


def works(node: NodeProcess) -> None:
  assert node.chat("hello", max_tokens=5)[0] == 200
  assert node.get("/health")[0] == 200 and node.get("/v1/topology")[0] == 200
  assert "Traceback" not in node.log and "failed:" not in node.log, node.log


def test_line_15_a_node_to_which_the_system_tells_nothing_is_a_node_like_others(tmp_path: Path) -> None:
  env, arguments = patched(tmp_path / "patch", FIGURES), flags()
  nodes = [
      NodeProcess(tmp_path, *arguments, node_id="blind", env=env),
      NodeProcess(tmp_path, *arguments, node_id="sees"),
  ]
  try:
    for node in nodes:
      ready(node)
    wait_until(lambda: all(len(node.peers()) == 2 for node in nodes), 15, "a ring")
    for node in nodes:
      works(node)
    heard = nodes[1].get("/v1/topology")[1]["nodes"]["blind"]
    assert heard["memory"] == 4096
    for text in ("memory", "its network interfaces", "the host's name"):
      nodes[0].wait_said(f"this system does not tell {text} (")
    assert nodes[0].log.count("does not tell memory") == 1
    assert "blind" in exo(tmp_path, env, "status")
    said = exo(tmp_path, env, "doctor", "--inference-engine", "dummy")
    assert "does not tell memory" in said and "--max-memory" in said
    assert "MODEL" in exo(tmp_path, env, "models")
    time.sleep(1)  # some heartbeats
    assert all(len(node.peers()) == 2 for node in nodes)
  finally:
    assert [node.stop() for node in nodes] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "error"), [(name, error) for name in FIGURES
                                             for error in ("its own", "OSError(5, 'I/O error')", *ODD)
                                             if error not in ODD or name.startswith(("psutil", "ifaddr"))])
def test_line_15_a_start_with_each_figure_missing(tmp_path: Path, name: str, error: str) -> None:
  env = patched(tmp_path / "patch", {name: FIGURES[name] if error == "its own" else error})
  node = NodeProcess(tmp_path / "home", *flags(), node_id="blind", env=env)
  try:
    works(ready(node))
  finally:
    assert node.stop() == 0


@pytest.mark.parametrize("hidden", [("/proc", "/sys")])
def test_line_15_a_node_without_proc_and_sys(tmp_path: Path, hidden: tuple[str, ...]) -> None:
  """Really without: empty file systems lie over them, in a mount namespace."""
  covers = "; ".join(f"mount -t tmpfs tmpfs {path}" for path in hidden)
  if subprocess.run(["unshare", "-m", "sh", "-c", covers], capture_output=True, check=False).returncode:
    pytest.skip("mount namespaces need root")
  prefix = ("unshare", "-m", "sh", "-c", f'{covers}; exec "$@"', "sh")
  node = NodeProcess(tmp_path, *flags(), node_id="hidden", prefix=prefix)
  try:
    works(ready(node))
  finally:
    assert node.stop() == 0


def test_line_15_a_user_without_a_home_is_told_what_to_set(tmp_path: Path) -> None:
  """No HOME, and a user id that passwd does not know."""
  (tmp_path / "sitecustomize.py").write_text(
      "import pwd\ndef _unknown(uid): raise KeyError(f'getpwuid(): uid not found: {uid}')\npwd.getpwuid = _unknown\n"
  )
  env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
  for command in ((), ("doctor", ), ("models", ), ("status", ), ("run", "~/x.gguf")):
    run = [sys.executable, "-m", "exo", *command]
    done = subprocess.run(run, env=env, cwd="/", capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1 and "EXO_HOME" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_line_15_figures_are_asked_for_in_one_place() -> None:
  """Whoever asks elsewhere must mind errors anew: here they are found."""
  allowed = {"psutil": {"system_figures.py", "machine.py"}, "ifaddr": {"adapters.py"}}
  for path in (ROOT / "exo").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
      names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
      for name in names:
        assert path.name in allowed.get(name.partition(".")[0], {path.name}), f"{path} imports {name}"
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        called = f"{node.value.id}.{node.attr}"
        if called in ("os.sched_getaffinity", "os.getloadavg", "socket.gethostname", "shutil.disk_usage", "Path.home"):
          assert path.name == "system_figures.py", f"{path} asks for {called}"
