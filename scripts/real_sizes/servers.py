"""Servers that are measured: llama.cpp's own, from its programs or from the wheel, and exo's nodes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from exo.cli.bench_load import Load
from scripts.real_sizes.work import Work, pinned
from test.support.far_rings import two_over_a_proxy
from test.support.nodes import ROOT, NodeProcess, free_port, wait_until

_START_S, _STUDY_S = 120.0, 900.0
_WHEEL = "scripts.real_sizes.wheel_server"
_SAID = 2000


@dataclass(frozen=True, slots=True)
class Serving:
  """How llama.cpp's server runs: `context` is of all streams together, `kv` the types of keys and values with flash attention, None for
  its own choice. `layers` and `elsewhere`: so many of the last layers are computed there."""
  context: int
  streams: int = 1
  kv: tuple[str, str] | None = None
  layers: int = 0
  elsewhere: str = ""


@contextmanager
def llama_server(work: Work, serving: Serving, cores: Sequence[int] | None = None) -> Iterator[str]:
  """The URL of one that is ready, on as many threads as there are cores. It keeps no prompts, and does not warm up."""
  cores, port = list(work.cores if cores is None else cores), free_port()
  if work.server == "wheel":
    wanted = asdict(serving) | {"model": str(work.file), "port": port, "threads": len(cores)}
    command = [sys.executable, "-m", _WHEEL, json.dumps(wanted)]
  else:
    command = [str(Path(work.server) / "llama-server"), *_flags(work, serving, len(cores), port)]
  with _running([*pinned(cores), *command], work.state / f"server-{port}.log") as (process, log):
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: _answers(url) or _ended(process, log), _START_S, "start of llama.cpp's server")
    yield url


def _flags(work: Work, serving: Serving, threads: int, port: int) -> list[str]:
  flags = ["-m", str(work.file), "-t", str(threads), "-tb", str(threads), "-c", str(serving.context)]
  flags += ["-np", str(serving.streams), "--no-warmup", "-cram", "0", "--host", "127.0.0.1", "--port", str(port)]
  if serving.kv is not None:
    flags += ["-fa", "on", "-ctk", serving.kv[0], "-ctv", serving.kv[1]]
  if serving.elsewhere:
    flags += ["--rpc", serving.elsewhere, "-fit", "off"]
  return [*flags, "-ngl", str(serving.layers)]


@contextmanager
def rpc_server(work: Work, core: int) -> Iterator[int]:
  """The port of a `ggml-rpc-server` on one core."""
  port = free_port()
  command = [*pinned([core]), str(Path(work.server) / "ggml-rpc-server"), "-t", "1", "-H", "127.0.0.1", "-p", str(port)]
  with _running(command, work.state / f"rpc-{port}.log") as (process, log):
    wait_until(lambda: _listens(port) or _ended(process, log), _START_S, "start of ggml-rpc-server")
    yield port


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
  with log.open("wb") as out:
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=out, stderr=out)
  try:
    yield process, log
  finally:
    process.kill()
    process.wait()


def _text(log: Path) -> str:
  return log.read_text(errors="replace")


def _ended(process: subprocess.Popen[bytes], log: Path) -> bool:
  if process.poll() is not None:
    raise RuntimeError(f"{process.args!r} ended with {process.returncode}: {_text(log)[-_SAID:]}")
  return False


def _answers(url: str) -> bool:
  try:
    with urllib.request.urlopen(f"{url}/health", timeout=2) as response:
      return bool(response.status == 200)
  except OSError:
    return False


def _listens(port: int) -> bool:
  try:
    socket.create_connection(("127.0.0.1", port), 2).close()
  except OSError:
    return False
  return True


@contextmanager
def nodes(work: Work,
          name: str,
          *flags: str,
          each: Sequence[Sequence[int]] | None = None,
          home: str = "") -> Iterator[list[NodeProcess]]:
  """A ring of nodes, each pinned to its own cores, by default one on those of the work; nodes of the same `home` know what others found out
  about stages."""
  each = [work.cores] if each is None else each
  port = str(free_port(2))
  found = "none" if len(each) == 1 else "udp"
  with ExitStack() as stack:
    ring = []
    for i, cores in enumerate(each):
      node = NodeProcess(
          work.state / (home or name) / str(i),
          *("--inference-engine", "llama_cpp", "--model-dir", str(work.file.parent), "--discovery-module", found),
          *("--listen-port", port, "--broadcast-port", port, *flags),
          node_id=f"{name}{i}",
          prefix=pinned(list(cores)),
          env={"DEBUG": "1"}
      )
      stack.callback(node.stop)
      ring.append(node)
    for node in ring:
      node.wait_ready()
    names = {node.node_id for node in ring}
    wait_until(lambda: all(node.peers() == names for node in ring), 30, f"a ring of {len(ring)}")
    yield ring


@contextmanager
def far_nodes(work: Work, each: Sequence[Sequence[int]], delay_s: float) -> Iterator[list[NodeProcess]]:
  """A ring of two over a link that takes so long each way."""
  flags = ("--inference-engine", "llama_cpp", "--model-dir", str(work.file.parent))
  prefixes = [pinned(list(cores)) for cores in each]
  with two_over_a_proxy(work.state / "far", *flags, prefixes=prefixes, env={"DEBUG": "1"},
                        delay_s=delay_s) as (ring, _):
    yield ring


def wait_studied(ring: Sequence[NodeProcess]) -> bool:
  """Until each node has found out, with a model loaded, in which calls it is exact, and has told its stage; whether that was so."""
  try:
    for node in ring:
      wait_until((node.home / ".exo" / "exactness.json").exists, _STUDY_S, f"the study of {node.node_id}")
  except AssertionError as error:
    print(f"  not found out: {error}", flush=True)
    return False
  time.sleep(1)
  return True


def first_of(node: NodeProcess) -> str:
  """The name of the node with the first layers."""
  plans = node.get("/v1/topology")[1]["plans"]
  return str(next(plan for plan in plans if plan["stages"])["stages"][0]["node_id"])


async def speeds(load: Load, prompt: Sequence[int], decoded: int) -> Mapping[str, float]:
  """Tokens/s as a client sees them: the prompt until the first token, and what follows. Greedy."""
  answer = await load.complete(list(prompt), decoded)
  return {"prefill": len(prompt) / answer.first_s, "decode": answer.tokens_s}
