"""Temperature and power of this machine, where the system tells them: on Linux by its files, elsewhere not at all."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_EVERY_S = 5.0
_MOST_C, _MOST_W = 150.0, 100_000.0
_PACKAGE = re.compile(r"[a-z-]+-rapl:\d+")


@dataclass(frozen=True, slots=True)
class Sensed:
  """The hottest of its sensors, and what its processors, or a battery that drains, give; 0 where nothing is told."""
  temperature_c: float = 0.0
  power_w: float = 0.0


class Sensors:
  """`root` is where the kernel shows its classes of devices. `latest` waits for nothing: a sensor may be slow."""
  def __init__(self, root: Path = Path("/sys/class")) -> None:
    self._root = root
    self._sensed = Sensed()
    self._asked_at = -_EVERY_S
    self._energy: tuple[float, float] | None = None  # when, and the joules counted until then

  def latest(self) -> Sensed:
    now = time.monotonic()
    if now - self._asked_at >= _EVERY_S:
      self._asked_at = now
      threading.Thread(target=self.read, name="exo-sensors", daemon=True).start()
    return self._sensed

  def read(self) -> Sensed:
    """Blocks."""
    hottest = [value / 1000 for value in self._numbers("hwmon/*/temp*_input", "thermal/thermal_zone*/temp")]
    temperature = max((value for value in hottest if 0 < value < _MOST_C), default=0.0)
    power = self._processors() or self._battery() or sum(self._numbers("hwmon/*/power*_average")) / 1e6
    self._sensed = Sensed(round(temperature, 1), round(power, 1) if 0 < power < _MOST_W else 0.0)
    return self._sensed

  def _processors(self) -> float:
    """What the processors' counters have risen by since the last reading; only root may read them on most systems."""
    domains = [path for path in self._found("powercap/*") if _PACKAGE.fullmatch(path.name)]
    joules = sum(value for path in domains for value in _number(path / "energy_uj")) / 1e6
    now, before = time.monotonic(), self._energy
    self._energy = (now, joules) if joules else None
    if not joules or before is None or joules < before[1] or now <= before[0]:  # the counters begin anew now and then
      return 0.0
    return (joules - before[1]) / (now - before[0])

  def _battery(self) -> float:
    drained = 0.0
    for path in self._found("power_supply/*"):
      with contextlib.suppress(OSError):
        if (path / "status").read_text().strip() == "Discharging":
          drained += sum(_number(path / "power_now")) / 1e6
    return drained

  def _numbers(self, *patterns: str) -> list[float]:
    return [value for pattern in patterns for path in self._found(pattern) for value in _number(path)]

  def _found(self, pattern: str) -> list[Path]:
    try:
      return sorted(self._root.glob(pattern))
    except OSError:
      return []


def _number(path: Path) -> Iterable[float]:
  """What stands in a file, or nothing."""
  try:
    return (float(path.read_text()), )
  except (OSError, ValueError):
    return ()
