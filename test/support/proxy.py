"""A TCP proxy between two nodes: late, narrow, or silently dead."""

from __future__ import annotations

import asyncio
import random
import threading
from types import TracebackType


class SlowProxy:
  """Forwards a port of this machine to another, in a thread of its own.

  Every piece is delayed by `delay_s` ± `jitter_s`, in order, and at most `bytes_per_s` pass each way. `half_open` lets
  nothing more through on the connections with these numbers (in the order in which they came) without closing them.
  """
  def __init__(self, target: int, delay_s: float = 0.0, jitter_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
    self._target, self._delay_s, self._jitter_s, self._bytes_per_s = target, delay_s, jitter_s, bytes_per_s
    self._half_open: set[int] = set()
    self._writers: list[asyncio.StreamWriter] = []
    self.connections = 0
    self.port = 0
    self._loop = asyncio.new_event_loop()
    self._ready = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)

  def __enter__(self) -> SlowProxy:
    self._thread.start()
    self._ready.wait(10)
    return self

  def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join(10)

  def half_open(self, *connections: int) -> None:
    self._half_open |= set(connections or range(self.connections))

  def _run(self) -> None:
    asyncio.set_event_loop(self._loop)
    server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
    self.port = server.sockets[0].getsockname()[1]
    self._ready.set()
    self._loop.run_forever()
    server.close()
    while tasks := asyncio.all_tasks(self._loop):
      for task in tasks:
        task.cancel()
      self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    for writer in self._writers:
      writer.transport.abort()
    self._loop.run_until_complete(asyncio.sleep(0.05))  # what was aborted is closed by the loop
    self._loop.close()

  async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
      there, back = await asyncio.open_connection("127.0.0.1", self._target)
    except OSError:
      writer.close()  # nobody listens there yet
      return
    number, self.connections = self.connections, self.connections + 1
    self._writers += [writer, back]
    await asyncio.gather(self._pipe(number, reader, back), self._pipe(number, there, writer), return_exceptions=True)

  async def _pipe(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    loop, pick = asyncio.get_running_loop(), random.Random(number)
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1000)

    async def forward() -> None:
      free_at = 0.0
      while True:
        due, data = await queue.get()
        if self._bytes_per_s:
          free_at = max(free_at, loop.time()) + len(data) / self._bytes_per_s
          due = max(due, free_at)
        await asyncio.sleep(max(0.0, due - loop.time()))
        if number in self._half_open:
          continue
        writer.write(data)
        await writer.drain()
        if not data:
          writer.close()
          return

    forwarding = asyncio.create_task(forward())
    try:
      while True:
        data = await reader.read(16384)
        await queue.put((loop.time() + self._delay_s + pick.uniform(-self._jitter_s, self._jitter_s), data))
        if not data:
          await forwarding
          return
    finally:
      forwarding.cancel()
      writer.close()
