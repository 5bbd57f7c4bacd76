"""Why others were turned down: said once, remembered in bounds, and which of it is wrong now."""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from dataclasses import dataclass

from exo.log import log
from exo.networking.token_bucket import TokenBucket
from exo.oldest import forget_oldest

MAX_REFUSALS = 1024  # the oldest give way, so that strangers keep no later reason out
MAX_CHARACTERS = 400
# lines that are logged whatever the level, and all others, so that no stranger fills the log; rates are for a second
_LOUD_BURST, _LOUD_RATE = 32.0, 1 / 60
_LINES_BURST, _LINES_RATE = 100.0, 0.2
# what is still wrong is met again within seconds: beacons, dials and looks repeat themselves
NOW_S = 60.0


@dataclass(slots=True)
class _Refusal:
  text: str
  wrong: bool
  node_id: str
  at: float


class Refusals:
  """Of one part of a node. `clock` gives seconds that only grow."""
  def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
    self._clock = clock
    self._noted: dict[str, _Refusal] = {}
    self._loud = TokenBucket(_LOUD_RATE, _LOUD_BURST, clock())
    self._lines = TokenBucket(_LINES_RATE, _LINES_BURST, clock())

  def note(self, text: str, *, about: str = "", wrong: bool = False, loud: bool = False, node_id: str = "") -> None:
    """`about` stands for texts that say the same in changing numbers. `wrong`: somebody should do something about it,
    unless `node_id` is linked all the same. `loud`: it is worth a line at every log level.
    """
    text = text[:MAX_CHARACTERS]
    key = about or text
    known = self._noted.get(key)
    if known is not None:
      known.text, known.wrong, known.node_id, known.at = text, wrong, node_id, self._clock()
      return
    self._noted[key] = _Refusal(text, wrong, node_id, self._clock())
    forget_oldest(self._noted, MAX_REFUSALS)
    loud = loud and self._loud.take(self._clock())
    if self._lines.take(self._clock()):
      log(0 if loud else 1, "%s", text)

  def texts(self) -> list[str]:
    """All, in the order of their first coming."""
    return [refusal.text for refusal in self._noted.values()]

  def problems(self, linked: Container[str] = ()) -> list[str]:
    """What was wrong within the last minute and is not about a node that is linked."""
    since = self._clock() - NOW_S
    return [r.text for r in self._noted.values() if r.wrong and r.at >= since and r.node_id not in linked]
