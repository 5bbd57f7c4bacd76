"""How much memory a node takes at most."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from exo.process_memory import held_bytes
from test.support.nodes import NodeProcess


@contextmanager
def watched(node: NodeProcess) -> Iterator[list[int]]:
  """The most that the node and its children hold until the end of the block."""
  most, ended = [0], threading.Event()

  def look() -> None:
    while not ended.is_set():
      most[0] = max(most[0], held_bytes(node.process.pid))
      time.sleep(0.02)

  thread = threading.Thread(target=look)
  thread.start()
  try:
    yield most
  finally:
    ended.set()
    thread.join()
