"""Everything at once: a ring of real nodes that are killed, frozen, made sick, short of disk and flooded while many ask.

Run by `faults.py chaos`. The first node is never killed: it is the clients', and what it holds in memory and descriptors must
stay flat.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
from faults_hoard import Hoard, ask, cases

from test.support.nodes import ROOT, NodeProcess, free_port, wait_until

RECOVERED_S = 120.0  # from the end of all faults until every node answers rightly again
SAMPLE_S = 5.0
JUDGED_S = 600.0  # in less time memory has not found its level
MEMORY_GROWTH, MEMORY_SLACK_MB, DESCRIPTOR_SLACK = 1.15, 60, 40
DISK_MB = 300
Say = Callable[[str], None]


@dataclass
class World:
  """The nodes, each with a home of its own that holds a copy of the model, and what makes them sick."""
  folder: Path
  model_home: Path | None
  arguments: tuple[str, ...]
  size: int
  port: int = field(default_factory=lambda: free_port(socket.SOCK_DGRAM))
  nodes: list[NodeProcess] = field(default_factory=list)

  def home(self, i: int) -> Path:
    return self.folder / f"home{i}"

  def sickness(self, i: int) -> Path:
    return self.folder / f"sick{i}"

  def fill_home(self, i: int) -> None:
    """The model as it should be."""
    if self.model_home is not None:
      for path in self.model_home.iterdir():
        if path.is_dir() and path.name != ".exo":
          shutil.copytree(path, self.home(i) / path.name, dirs_exist_ok=True, symlinks=False)
        elif path.suffix == ".gguf":
          shutil.copy(path, self.home(i) / path.name)

  def node(self, i: int) -> NodeProcess:
    environment = {"EXO_SICK": str(self.sickness(i)), "PYTHONPATH": str(ROOT / "test/support/sick"), "DEBUG": "1"}
    port = str(self.port)
    return NodeProcess(
        self.home(i),
        "--listen-port",
        port,
        "--broadcast-port",
        port,
        *self.arguments,
        node_id=f"node{i}",
        env=environment
    )

  def start(self) -> None:
    for i in range(self.size):
      self.home(i).mkdir(parents=True)
      self.fill_home(i)
      self.nodes.append(self.node(i))
      with contextlib.suppress(AssertionError):  # the machine may be busy
        self.nodes[i].wait_ready()
      self.nodes[i].wait_ready()
    self.wait_whole(60)

  def wait_whole(self, timeout_s: float) -> None:
    names = {node.node_id for node in self.nodes}
    wait_until(lambda: all(node.peers() == names for node in self.nodes), timeout_s, "a whole ring")

  def restart(self, i: int) -> None:
    self.nodes[i].kill()
    self.nodes[i] = self.node(i)
    with contextlib.suppress(
        AssertionError
    ):  # it may be too sick to be ready; the end of the chaos says whether it came back
      self.nodes[i].wait_ready()


class Trouble:
  """One fault at a time on each of the nodes behind the first; how many there were is in `counts`."""
  def __init__(self, world: World, pick: random.Random, every_s: float, say: Say) -> None:
    self._world, self._pick, self._every_s, self._say = world, pick, every_s, say
    self.counts: Counter[str] = Counter()
    self.ending = asyncio.Event()
    on_disk = world.model_home is not None
    self._faults: dict[str, Callable[[int], object]] = {
        "kill": self._kill, "freeze": self._freeze, "nan": self._sick, "inf": self._sick, "huge": self._sick,
        "raise": self._sick, "slow": self._sick
    }
    if on_disk:
      self._faults["truncated file"] = self._truncated
    if on_disk and os.geteuid() == 0:
      self._faults["full disk"] = self._full_disk

  async def run(self) -> None:
    await asyncio.gather(self._floods(), *(self._on(i) for i in range(1, self._world.size)))

  async def _pause(self, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
      await asyncio.wait_for(self.ending.wait(), seconds)

  async def _on(self, i: int) -> None:
    """Faults of one node, with rests of `every_s` seconds on average."""
    while not self.ending.is_set():
      await self._pause(self._pick.uniform(0.2, 1.8) * self._every_s)
      if self.ending.is_set():
        return
      name = self._pick.choice(list(self._faults))
      self.counts[name] += 1
      self._say(f"node{i}: {name}")
      if self._faults[name] == self._sick:
        self._world.sickness(i).write_text(name)
        await self._pause(self._pick.uniform(2, 8))
        self._world.sickness(i).unlink()
      else:
        await asyncio.to_thread(self._faults[name], i)

  def _sick(self, i: int) -> None:
    """Told through the file that `sitecustomize` reads."""

  def _kill(self, i: int) -> None:
    self._world.nodes[i].kill()
    time.sleep(self._pick.uniform(0, 3))
    self._world.restart(i)

  def _freeze(self, i: int) -> None:
    process = self._world.nodes[i].process
    process.send_signal(signal.SIGSTOP)
    time.sleep(self._pick.uniform(0.5, 12))
    process.send_signal(signal.SIGCONT)

  def _truncated(self, i: int) -> None:
    world = self._world
    world.nodes[i].kill()
    for path in world.home(i).rglob("*.gguf"):
      os.truncate(path, self._pick.randrange(path.stat().st_size))
    world.restart(i)
    time.sleep(self._pick.uniform(2, 10))
    world.nodes[i].kill()
    world.fill_home(i)
    world.restart(i)

  def _full_disk(self, i: int) -> None:
    """A home that has no room for the model, and later has; then its own again."""
    world, disk = self._world, self._world.home(i)
    world.nodes[i].kill()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", str(disk)], check=True)
    try:
      filler = disk / "filler"
      with filler.open("wb") as file:
        file.write(bytes((DISK_MB - 2) * 2**20))  # the log and the state folder still fit
      world.restart(i)
      time.sleep(self._pick.uniform(4, 10))
      filler.unlink()
      time.sleep(self._pick.uniform(2, 6))
    finally:
      world.nodes[i].kill()
      subprocess.run(["umount", "-l", str(disk)], check=True)
    world.restart(i)

  async def _floods(self) -> None:
    while not self.ending.is_set():
      await self._pause(self._pick.uniform(20, 60))
      if self.ending.is_set():
        return
      kind = self._pick.choice(("datagrams", "connections"))
      self.counts[f"flood of {kind}"] += 1
      self._say(f"a flood of {kind}")
      if kind == "datagrams":
        await asyncio.to_thread(self._datagrams, 3.0)
      else:
        await self._connections(5.0)

  def _datagrams(self, seconds: float) -> None:
    """10,000 a second: noise, and beacons of nodes that there are not."""
    pick = random.Random(self._pick.random())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
      until = time.monotonic() + seconds
      while time.monotonic() < until:
        for k in range(500):
          beacon = f'{{"type": "discovery", "node_id": "x{pick.random()}", "grpc_port": {1024 + k}}}'.encode()
          with contextlib.suppress(OSError):
            sock.sendto(beacon if k % 2 else pick.randbytes(200), ("127.0.0.1", self._world.port))
        time.sleep(0.05)

  async def _connections(self, seconds: float) -> None:
    """400 that say nothing, to the node that the clients ask."""
    port = int(self._world.nodes[0].url.rpartition(":")[2])
    opened = []
    for _ in range(400):
      with contextlib.suppress(OSError):
        opened.append(await asyncio.open_connection("127.0.0.1", port))
    await self._pause(seconds)
    for _, writer in opened:
      writer.close()


@dataclass
class Watched:
  """Samples of a process that lives throughout: resident MB and descriptors."""
  process: psutil.Process
  memory_mb: list[float] = field(default_factory=list)
  descriptors: list[int] = field(default_factory=list)

  async def run(self, ending: asyncio.Event) -> None:
    while not ending.is_set():
      self.sample()
      with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(ending.wait(), SAMPLE_S)

  def sample(self) -> None:
    self.memory_mb.append(self.process.memory_info().rss / 2**20)
    self.descriptors.append(self.process.num_fds())

  def median_memory(self, begin: float, end: float) -> float:
    """Over a part of the time, as fractions of it."""
    n = len(self.memory_mb)
    part = sorted(self.memory_mb[int(begin * n):max(int(end * n), int(begin * n) + 1)])
    return part[len(part) // 2]


async def reference(node: NodeProcess) -> dict[str, str]:
  """What an undisturbed node answers to every case."""
  async with aiohttp.ClientSession() as session:
    return {case.name: (await ask(session, node.url, case.body | {"stream": True})).text for case in cases()}


async def recovered(world: World, expected: dict[str, str]) -> list[str]:
  """Nodes that do not answer rightly, alone or in the ring, once nothing disturbs them any more."""
  deadline, wrong = time.monotonic() + RECOVERED_S, ["nobody was asked"]
  case = cases()[0]
  async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
    while wrong and time.monotonic() < deadline:
      answers = {node.node_id: await ask(session, node.url, case.body | {"stream": True}) for node in world.nodes}
      wrong = [f"{name}: {a}" for name, a in answers.items() if a.text != expected[case.name] or not a.done]
      names = {node.node_id for node in world.nodes}
      wrong += [f"{n.node_id} sees {sorted(n.peers())}" for n in world.nodes if n.peers() != names]
      await asyncio.sleep(1)
  return wrong


async def chaos(
    world: World, minutes: float, clients: int, seed: int, pause_s: float, every_s: float, say: Say
) -> bool:
  """Whether every answer was exact or an honest error, nobody waited in silence, and the first node stayed as small as it was."""
  pick = random.Random(seed)
  alone = World(world.folder / "alone", world.model_home, world.arguments, 1)
  alone.start()
  try:
    expected = await reference(alone.nodes[0])
  finally:
    alone.nodes[0].stop()
  say(f"{len(expected)} answers of an undisturbed node, the longest {max(map(len, expected.values()))} characters")
  await asyncio.to_thread(world.start)
  hoard = Hoard(world.nodes[0].url, clients, expected, pick, pause_s)
  watched = Watched(psutil.Process(world.nodes[0].process.pid))
  trouble = Trouble(world, pick, every_s, say)
  asking = asyncio.create_task(hoard.run())
  watching = asyncio.create_task(watched.run(hoard.ending))
  troubling = asyncio.create_task(trouble.run())
  until = time.monotonic() + minutes * 60
  while time.monotonic() < until and not asking.done() and not troubling.done():
    await asyncio.sleep(min(30, max(0.1, until - time.monotonic())))
    tally = hoard.tally
    say(
        f"{sum(n for k, n in tally.counts.items() if k != 'resumed')} requests, longest silence {tally.longest_silence_s:.1f} s, "
        f"{watched.memory_mb[-1]:.0f} MB, {watched.descriptors[-1]} descriptors; {dict(tally.counts)}"
    )
  trouble.ending.set()
  await troubling
  hoard.ending.set()
  await asyncio.gather(asking, watching)
  say("the chaos is over")
  sick = await recovered(world, expected)
  await asyncio.sleep(5)
  watched.sample()
  return report(hoard, trouble, watched, sick, say)


def report(hoard: Hoard, trouble: Trouble, watched: Watched, sick: list[str], say: Say) -> bool:
  tally = hoard.tally
  early, late = watched.median_memory(0.2, 0.4), watched.median_memory(0.85, 1.0)
  fds = watched.descriptors
  say(f"faults: {dict(trouble.counts)}")
  say(f"answers: {dict(tally.counts)}")
  say(f"longest silence of a client: {tally.longest_silence_s:.1f} s")
  say(
      f"memory of the clients' node: {early:.0f} MB early, {late:.0f} MB late; descriptors: {fds[0]} at first, {fds[-1]} at last"
  )
  problems = [*tally.bad[:20], *(f"not recovered: {text}" for text in sick)]
  if len(watched.memory_mb) * SAMPLE_S > JUDGED_S and late > early * MEMORY_GROWTH + MEMORY_SLACK_MB:
    problems.append(f"memory grew from {early:.0f} to {late:.0f} MB")
  if fds[-1] > fds[0] + DESCRIPTOR_SLACK:
    problems.append(f"descriptors grew from {fds[0]} to {fds[-1]}")
  for problem in problems:
    say(f"BROKEN: {problem}")
  return not problems
