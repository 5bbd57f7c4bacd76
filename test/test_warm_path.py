"""gRPC's echo to itself between frames: small, closed to strangers, and never in the way."""

import asyncio
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from exo.networking.grpc import warm_path
from exo.networking.grpc.warm_path import WarmPath
from exo.networking.messages import Cancel, Message
from test.test_mesh import candidate, mesh, run


def sockets() -> int:
  return sum(
      str(link.readlink()).startswith("socket:") for link in Path("/proc/self/fd").iterdir() if link.is_symlink()
  )


async def until(condition: Callable[[], bool]) -> None:
  async with asyncio.timeout(10):
    while not condition():  # noqa: ASYNC110 - neither a closed socket nor an echo tells anybody
      await asyncio.sleep(0.005)


@asynccontextmanager
async def warm() -> AsyncIterator[WarmPath]:
  path = WarmPath()
  try:
    yield path
  finally:
    await path.close()


async def sent(path: WarmPath, count: int) -> None:
  for _ in range(count):
    path.touch()
    path.touch()  # one on its way is enough
    await until(lambda: not path.busy)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_it_opens_once_and_closes_all() -> None:
  async def scenario() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1"):  # gRPC's own descriptors, opened once in a process
      before = sockets()
      path = WarmPath()
      await sent(path, 1)
      opened = sockets()
      assert opened > before and path.messages == 1
      await sent(path, 20)
      assert sockets() == opened and path.messages == 21
      await path.close()
      await until(lambda: sockets() <= before)

  asyncio.run(scenario())


def test_nobody_else_may_use_it_and_nothing_of_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
  made: list[tuple[Path, int]] = []
  make = tempfile.mkdtemp

  def noted(**kwargs: str) -> str:
    made.append((folder := Path(make(**kwargs)), stat.S_IMODE(folder.stat().st_mode)))
    return str(folder)

  async def scenario() -> None:
    async with warm() as path:
      await sent(path, 2)
      ((folder, mode), ) = made
      assert mode == 0o700 and not folder.exists() and path.messages == 2

  monkeypatch.setattr(tempfile, "mkdtemp", noted)
  asyncio.run(scenario())


def test_where_it_cannot_be_opened_it_is_given_up_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
  tried = []

  def refuse(*_: object, **__: object) -> grpc.aio.Server:
    tried.append(1)
    raise RuntimeError("no sockets here")

  async def scenario() -> None:
    async with warm() as path:
      with monkeypatch.context() as patch:
        patch.setattr(grpc.aio, "server", refuse)
        await sent(path, 3)
      assert len(tried) == 1 and path.messages == 0 and path.folder is None
      await sent(path, 1)
      assert path.messages == 0, "it rests for a while"
      path._resting_until = 0.0
      await sent(path, 1)
      assert path.messages == 1

  asyncio.run(scenario())


def test_an_echo_that_stopped_is_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(warm_path, "_PAUSE_S", 0.0)

  async def scenario() -> None:
    async with warm() as path:
      await sent(path, 2)
      before = path._server
      assert before is not None
      await before.stop(grace=None)
      await sent(path, 1)
      assert path.messages == 2
      await sent(path, 2)
      assert path.messages == 4 and path._server is not before

  asyncio.run(scenario())


def test_a_rehearsal_is_heard_by_nobody() -> None:
  async def scenario() -> None:
    async with mesh("a") as (a, at_a), mesh("b") as (b, at_b):
      a.offer(candidate(b))
      await at_a.until(lambda: "+b" in at_a.events)
      await at_b.until(lambda: "+a" in at_b.events)
      b.rehearse("a")  # nothing has come yet but greetings
      a.rehearse("b")
      told: list[tuple[str, Message]] = [("a", Cancel("p", str(i))) for i in range(3)]
      for _, message in told[:2]:
        a.send("b", message)
      await at_b.until(lambda: len(at_b.messages) == 2)
      for _ in range(5):
        b.rehearse("a")
        b.rehearse("nobody")
        await asyncio.sleep(0.01)
      a.send("b", told[2][1])
      await at_b.until(lambda: len(at_b.messages) > 2)
      assert at_b.messages == told

  run(scenario)
