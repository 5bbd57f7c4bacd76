"""Line 15: an EXO_HOME on a file system that lacks something goes on in another way, or the start says what is missing.

No kernel here has NFS, SMB or FAT for certain, so a node runs with a patch that lets calls under its EXO_HOME fail as they
do there; what real mounts can show (read-only, full) is shown by them.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exo.download import file_lock
from exo.download.file_lock import locked, try_lock
from exo.download.file_system import lacks
from exo.errors import DownloadError
from exo.inference.weights.block_map import BlockMap
from test.support.disks import own_disk
from test.support.hub import Hub, hub
from test.support.nodes import ROOT, NodeProcess, free_port, wait_until

NAMES = ("ENOLCK", "EOPNOTSUPP", "ENOSYS", "EINVAL", "EPERM", "EROFS", "ENODEV")
# what may fail, with conditions under which the call goes through: it is not about such a file, or asks nothing special
CALLS = {
    "fcntl.flock": "False",
    "os.ftruncate": "a[1] <= os.fstat(a[0]).st_size",
    "os.fsync": "False",
    "mmap.mmap": "a[0] == -1",
    "os.replace": "not os.path.exists(a[1])",
    "os.chmod": "False",
    "os.link": "False",
    "os.symlink": "False",
    "os.utime": "False",
    "os.open": "not a[1] & os.O_EXCL or 'tmp' in os.path.basename(os.fspath(a[0]))",
    "shutil.disk_usage": "False",
}


def patched(folder: Path, failing: dict[str, str]) -> dict[str, str]:
  """The environment of a process in which these calls fail with these errors."""
  lines = ["import errno, fcntl, mmap, os, shutil"]
  for i, (name, error) in enumerate(failing.items()):
    lines += [
        f"_f{i} = {name}", f"def _fail{i}(*a, **k):", f"  if {CALLS[name]}: return _f{i}(*a, **k)",
        f"  raise OSError(errno.{error}, os.strerror(errno.{error}))", f"{name} = _fail{i}"
    ]
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "sitecustomize.py").write_text("\n".join(lines) + "\n")
  return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


@pytest.fixture(scope="module")
def tiny_hub(goldens: Path) -> Iterator[Hub]:
  with hub({"org/tiny": goldens / "llama"}) as server:
    yield server


@contextmanager
def node_of(home: Path, server: Hub, env: dict[str, str]) -> Iterator[NodeProcess]:
  port = str(free_port(socket.SOCK_DGRAM))
  node = NodeProcess(
      home, "--listen-port", port, "--broadcast-port", port, "--interface-type-filter", "loopback", "--default-model",
      "org/tiny", node_id="sick", env={"HF_ENDPOINT": server.url, "HF_HOME": str(home / "hf")} | env
  )  # yapf: disable
  try:
    yield node.wait_ready()
  finally:
    assert node.stop() == 0


def works(node: NodeProcess) -> str:
  """A model is fetched, used, deleted and fetched again."""
  said = []
  for _ in range(2):
    status, answer = node.chat("t5 t6", max_tokens=4, temperature=0)
    assert status == 200, f"{answer}\n{node.log}"
    said.append(answer["choices"][0]["message"]["content"])
    assert node.get("/health")[0] == 200
    request = node.url + "/models/org%2Ftiny"
    deleted = subprocess.run(["curl", "-s", "-m", "20", "-X", "DELETE", "-H", f"Authorization: Bearer {token(node)}",
                              request], capture_output=True, text=True, check=False).stdout  # yapf: disable
    assert "freed_bytes" in deleted, deleted
  assert said[0] == said[1] and said[0] and "Traceback" not in node.log
  return said[0]


def token(node: NodeProcess) -> str:
  found = re.search(r'"token": "([^"]+)"', node.runtime_file.read_text())
  return found[1] if found else ""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny_hub: Hub) -> str:
  with node_of(tmp_path_factory.mktemp("sound"), tiny_hub, {}) as node:
    said = works(node)
    assert "the file system of" not in node.log
    return said


def test_line_15_a_file_system_that_lacks_everything(tmp_path: Path, tiny_hub: Hub, sound: str) -> None:
  errors = dict(zip(CALLS, ("ENOLCK", "EOPNOTSUPP", "EINVAL", "ENODEV", "EPERM", "EPERM", "EPERM", "EPERM", "ENOSYS",
                            "EINVAL", "ENOSYS"), strict=True))  # yapf: disable
  env = patched(tmp_path / "patch", errors)
  with node_of(tmp_path / "home", tiny_hub, env) as node:
    assert works(node) == sound
    for lack in (
        "locks (No locks", "sparse files (", "flushing to disk (", "shared maps of files (No such device",
        "renaming over a file (", "permissions (", "exclusive creation ("
    ):
      node.wait_said(f"has no {lack}")
    doctor = subprocess.run([sys.executable, "-m", "exo", "doctor"], cwd=ROOT, capture_output=True, text=True, check=False,
                            env=os.environ | {"EXO_HOME": str(tmp_path / "home")} | env)  # yapf: disable
    assert "no locks (No locks available)" in doctor.stdout and "Traceback" not in doctor.stderr, doctor.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("error", NAMES)
def test_line_15_each_call_that_fails(tmp_path: Path, tiny_hub: Hub, sound: str, name: str, error: str) -> None:
  """Either it goes on, or there is an answer in words: never a request without one."""
  if (name, error) == ("os.open", "EROFS"):  # as where nothing can be written: said at the start
    env = os.environ | {"EXO_HOME": str(tmp_path / "home")} | patched(tmp_path / "patch", {name: error})
    done = subprocess.run([sys.executable, "-m", "exo", "--disable-tui", "--inference-engine", "dummy"], cwd=ROOT, env=env,
                          capture_output=True, text=True, timeout=30, check=False)  # yapf: disable
    assert done.returncode == 1 and "Read-only file system): point EXO_HOME elsewhere" in done.stderr, done.stderr
    return
  with node_of(tmp_path / "home", tiny_hub, patched(tmp_path / "patch", {name: error})) as node:
    status, answer = node.chat("t5 t6", max_tokens=4, temperature=0)
    if status == 200:
      assert answer["choices"][0]["message"]["content"] == sound
    else:
      assert error == "EROFS" and status == 503 and "EXO_HOME" in answer["error"]["message"], answer
    assert node.get("/health")[0] == 200 and "Traceback" not in node.log


def test_line_15_tasks_exclude_each_other_with_and_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))

  async def together(name: str) -> int:
    running = most = 0

    async def one() -> None:
      nonlocal running, most
      async with locked(tmp_path / name, lambda: None):
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1

    await asyncio.gather(*(one() for _ in range(5)))
    return most

  assert asyncio.run(together("with")) == 1

  def refuse(*_: object) -> None:
    raise OSError(errno.ENOLCK, "none")

  monkeypatch.setattr("fcntl.flock", refuse)
  assert asyncio.run(together("without")) == 1
  lock = try_lock(tmp_path / "again")
  assert lock is not None and not lock.reaches_others and try_lock(tmp_path / "again") is None
  lock.release()


def test_line_15_processes_exclude_each_other_elsewhere(tmp_path: Path) -> None:
  """Where EXO_HOME has no locks and the folder for temporary files has."""
  code = """
import sys, fcntl, os, errno
flock = fcntl.flock
def f(descriptor, how):
  if "exo-locks" not in os.readlink(f"/proc/self/fd/{descriptor}"): raise OSError(errno.EOPNOTSUPP, "none")
  flock(descriptor, how)
fcntl.flock = f
from pathlib import Path
from exo.download.file_lock import try_lock
lock = try_lock(Path(sys.argv[1]))
print("free" if lock else "taken", lock and lock.reaches_others, flush=True)
sys.stdin.read()
"""
  run = [sys.executable, "-c", code, str(tmp_path / "x.lock")]
  env = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
  first = subprocess.Popen(run, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  assert first.stdout is not None and first.stdout.readline() == "free True\n"
  second = subprocess.run(run, env=env, input="", capture_output=True, text=True, check=True)
  first.communicate("", timeout=10)
  third = subprocess.run(run, env=env, input="", capture_output=True, text=True, check=True)
  assert (second.stdout, third.stdout) == ("taken None\n", "free True\n")


def test_line_15_a_lock_daemon_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """A request gets its error in time, the next one at once, and the loop runs on; later all is as before."""
  answer = threading.Event()
  monkeypatch.setattr("fcntl.flock", lambda *_: answer.wait(30))
  monkeypatch.setattr(file_lock, "_HANG_S", 0.3)

  async def asks() -> None:
    beats = 0

    async def beat() -> None:
      nonlocal beats
      while True:
        await asyncio.sleep(0.01)
        beats += 1

    beating = asyncio.create_task(beat())
    for _ in range(3):
      with pytest.raises(DownloadError, match="does not answer"):
        async with locked(tmp_path / "x", lambda: None):
          pass
    assert beats > 10
    answer.set()
    wait_until(lambda: not file_lock._stuck, 5, "the answer")
    await asyncio.sleep(0.05)
    async with locked(tmp_path / "x", lambda: None):
      beating.cancel()

  asyncio.run(asks())


def test_line_15_maps_of_blocks_without_shared_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """Readers see what a writer adds, as they do with them."""
  def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ENODEV, "none")

  monkeypatch.setattr("mmap.mmap", refuse)
  path = tmp_path / "m.blocks"
  writer = BlockMap.create(path, 10_000, "v1")
  reader = BlockMap(path, writable=False)
  assert not reader.has(0, 1) and reader.held() == []
  writer.mark(0, b"\1" * 64)
  assert reader.has(0, 2048) and reader.held() == [(0, 2048)] and reader.digests(0, 1024) == b"\1" * 32
  writer.stamp(77, verified=True)
  assert reader.synced_ns == 77 and reader.verified
  writer.clear([(0, 1024)])
  assert BlockMap(path, writable=False).held() == [(1024, 2048)] == reader.held()
  monkeypatch.undo()
  assert BlockMap(path, writable=False).held() == [(1024, 2048)]


def test_line_15_nothing_is_found_missing_here(tmp_path: Path) -> None:
  assert lacks(tmp_path) == [] and list(tmp_path.iterdir()) == []
  assert lacks(tmp_path / "nothing") == []


def test_line_15_a_home_that_is_read_only_is_said_at_the_start(tmp_path: Path) -> None:
  """A real mount. A model folder may be read-only."""
  with own_disk(tmp_path / "ro", "ro") as mounted:
    done = subprocess.run([sys.executable, "-m", "exo", "--disable-tui", "--inference-engine", "dummy"], cwd=ROOT,
                          env=os.environ | {"EXO_HOME": str(mounted)}, capture_output=True, text=True, timeout=30,
                          check=False)  # yapf: disable
    assert done.returncode == 1 and "Read-only file system" in done.stderr and "EXO_HOME" in done.stderr
    assert "Traceback" not in done.stderr


def test_line_15_a_share_whose_server_is_away_is_said_at_the_start(tmp_path: Path) -> None:
  """Calls about its files stand still, as on a hard mount."""
  (tmp_path / "sitecustomize.py").write_text(
      "import fcntl, time\nfcntl.flock = lambda *a: time.sleep(1000)\n"
      "import exo.cli.assemble\nexo.cli.assemble._FILES_S = 1.0\n"
  )
  env = os.environ | {"EXO_HOME": str(tmp_path / "home"), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
  started = time.monotonic()
  done = subprocess.run([sys.executable, "-m", "exo", "--disable-tui", "--inference-engine", "dummy"], cwd=ROOT,
                        env=env, capture_output=True, text=True, timeout=60, check=False)  # yapf: disable
  assert done.returncode == 1 and "does not answer" in done.stderr and time.monotonic() - started < 50


def test_line_15_calls_that_may_be_missing_are_made_in_one_place() -> None:
  """Whoever makes them elsewhere must have another way of their own: here they are found."""
  allowed = {
      r"\bflock\(": {"file_lock.py", "file_system.py", "made_files.py"},
      r"\bfsync\(": {"file_calls.py", "file_system.py"},
      r"\bftruncate\(": {"file_calls.py", "file_system.py", "shared_memory.py"},  # the last one's is memory
      r"\bO_EXCL\b": {"file_calls.py", "file_system.py"},
      r"\bmemmap\(|\bmmap\.mmap\((?!-1)": {"file_bytes.py", "block_map.py", "file_system.py", "shared_memory.py"},
      r"\bos\.replace\(|\b(part|path)\.(replace|rename)\((?!['\"])": {"file_calls.py"},
      # which of what is kept was asked for last may be unknown
      r"\.(hardlink_to|symlink_to)\(|\bos\.(link|symlink|utime)\(": {"record_store.py"},
  }
  for path in (ROOT / "exo").rglob("*.py"):
    source = path.read_text()
    for pattern, names in allowed.items():
      assert path.name in names or not re.search(pattern, source), f"{path}: {pattern}"
