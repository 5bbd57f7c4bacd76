"""What is found out about loaded stages while nobody wants their device, and kept on disk: in which calls they are exact."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

from exo.errors import EngineError, in_words
from exo.inference.engine import StageModel, Study
from exo.inference.exactness import Exactness
from exo.log import log
from exo.oldest import forget_oldest
from exo.private_files import write_private
from exo.system_figures import memory
from exo.tasks import in_own_thread
from exo.worker.quiet import quiet
from exo.worker.worker import Worker

_FILE = "exactness.json"
_MOST_BYTES, _MOST_KEPT = 2**20, 2000
_QUIET_S, _LATER_S = 5.0, 60.0
_TRIES, _LONGEST_S = 2, 700.0


class Studies:
  def __init__(self, state_dir: Path) -> None:
    self._file = state_dir / _FILE
    self._lock = asyncio.Lock()  # one at a time

  def _read(self) -> dict[str, Exactness]:
    """Nothing where there is no file, and of what somebody else may have written there only what is plausible."""
    try:
      if self._file.stat().st_size > _MOST_BYTES:
        return {}
      read = {str(key): _plausible(value) for key, value in json.loads(self._file.read_text("utf-8")).items()}
      return {key: found for key, found in read.items() if found is not None}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
      return {}

  def _keep(self, key: str, found: Exactness) -> None:
    known = {kept: list(astuple(of)) for kept, of in self._read().items()}
    known.pop(key, None)
    forget_oldest(known, _MOST_KEPT)
    write_private(self._file, json.dumps(known | {key: list(astuple(found))}))

  async def recall(self, worker: Worker, model: StageModel) -> None:
    """Tell a stage that was just loaded what is known of such stages."""
    study = model.to_study()
    known = {} if study is None else await asyncio.to_thread(self._read)
    if study is not None and study.key in known:
      await worker.thread.run(model.learn, known[study.key])

  async def run(self, worker: Worker, model: StageModel, busy: Callable[[], bool]) -> Exactness | None:
    """Find out what is not known of a stage as soon as nobody is `busy` and there is memory for it, and tell the stage. Broken off when
    somebody is, and begun again later. None where it cannot be found out: what has failed twice is left.

    The memory is beside what the worker offers, for as long as it takes, and only where the machine has twice as much.
    """
    study, failures = model.to_study(), 0
    while study is not None and failures < _TRIES:
      await self._quiet(worker, study, busy)
      async with self._lock:
        # by another stage, or another node
        known = (await asyncio.to_thread(self._read)).get(study.key)
        try:
          found = known or await self._found(study, busy)
        except EngineError as error:
          log(1, "%s: it could not be found out in which calls it is exact: %s", model.shard, error)
          failures += 1
          continue
        if found is None:
          continue
        log(1, "%s: exact with %s", model.shard, found)
        if found is not known:
          await self._kept(study.key, found)
      await worker.thread.run(model.learn, found)
      return found
    return None

  async def _kept(self, key: str, found: Exactness) -> None:
    try:
      await asyncio.to_thread(self._keep, key, found)
    except OSError as error:
      log(0, "what was found out about a stage cannot be kept: %s", in_words(error))

  @staticmethod
  async def _found(study: Study, busy: Callable[[], bool]) -> Exactness | None:
    """None where somebody wants the device. Raises `EngineError`."""
    wanted = True
    try:
      return await in_own_thread(lambda: study.run(lambda: not wanted or busy()), _LONGEST_S)
    except TimeoutError as error:
      raise EngineError(f"its study does not end within {_LONGEST_S:.0f} s") from error
    finally:
      wanted = False

  @staticmethod
  async def _quiet(worker: Worker, study: Study, busy: Callable[[], bool]) -> None:
    """Until nobody has wanted the device for a while, and there is room."""
    await quiet(busy, _QUIET_S)
    while worker.room < study.n_bytes or memory().available < 2 * study.n_bytes:
      await asyncio.sleep(_LATER_S)
      await quiet(busy, _QUIET_S)


def _plausible(value: Any) -> Exactness | None:
  """None for what cannot be."""
  if not isinstance(value, list) or [type(one) for one in value] != [int, int, bool, int, bool]:
    return None
  found = Exactness(*value)
  return found if found.is_possible else None
