"""Cores that do not fall asleep between the frames of a ring.

Where one request goes round, every node waits for its turn in each step. A core that sleeps meanwhile takes 50 to 200 µs to
wake, in a virtual machine more than that, several times a step, and computes more slowly at first. Linux lets a process ask
for quicker cores for as long as it holds a file open (`Documentation/power/pm_qos_interface.rst` of its sources); mostly only
root may.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from exo.log import log

_LATENCY_FILE = Path("/dev/cpu_dma_latency")
_IDLE_DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
_REST_S = 1.0  # without a frame, after which the cores may sleep again
# a light sleep on real hardware (C1); a guest does not see what its one state of sleep costs, so it may not sleep at all
_LATENCY_US, _GUEST_LATENCY_US = 10, 0


class AwakeCores:
  """Holds while frames come. Where the system does not allow it, nothing happens."""
  def __init__(self, wanted: bool, latency_file: Path = _LATENCY_FILE, idle_driver: Path = _IDLE_DRIVER) -> None:
    self._wanted = wanted
    self._latency_file, self._idle_driver = latency_file, idle_driver
    self._file: int | None = None
    self._timer: asyncio.TimerHandle | None = None
    self._held_at = 0.0

  def hold(self) -> None:
    """A frame came, and more will. Paid for every one of them."""
    loop = asyncio.get_running_loop()
    self._held_at = loop.time()
    if self._file is None and self._wanted:
      self._open()
      if self._file is not None:
        self._timer = loop.call_later(_REST_S, self._look, loop)

  def _open(self) -> None:
    try:
      guest = self._idle_driver.read_text().strip() == "haltpoll"
      self._file = os.open(self._latency_file, os.O_WRONLY)
      os.write(self._file, (_GUEST_LATENCY_US if guest else _LATENCY_US).to_bytes(4, "little"))
    except OSError as error:
      self._wanted = False
      self.close()
      log(1, "cores may sleep between the frames of a ring, which slows a single stream: %s", error)

  def _look(self, loop: asyncio.AbstractEventLoop) -> None:
    left_s = self._held_at + _REST_S - loop.time()
    if left_s <= 0:
      self.close()
    else:
      self._timer = loop.call_later(left_s, self._look, loop)

  def close(self) -> None:
    """Let the cores sleep."""
    if self._timer is not None:
      self._timer.cancel()
      self._timer = None
    if self._file is not None:
      os.close(self._file)
      self._file = None
