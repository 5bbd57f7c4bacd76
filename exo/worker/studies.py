"""What is found out about loaded stages while nobody wants their device, and kept on disk: in which calls they are exact."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

from exo.errors import EngineError, in_words
from exo.inference.engine import StageModel, Study
from exo.inference.exactness import MOST_MULTIPLE, Exactness
from exo.log import log
from exo.oldest import forget_oldest
from exo.private_files import write_private
from exo.system_figures import memory
from exo.tasks import in_own_thread
from exo.worker.worker import Worker

_FILE = "exactness.json"
_MOST_BYTES, _MOST_KEPT = 2**20, 2000
_QUIET_S, _POLL_S, _LATER_S = 5.0, 1.0, 60.0
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
      return {str(key): _plausible(value) for key, value in json.loads(self._file.read_text("utf-8")).items()}
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
    """Find out what is not known of a stage as soon as nobody is `busy` and there is memory for it, and tell the stage. None where that
    cannot be; what has been tried twice in vain is left."""
    study = model.to_study()
    for _ in range(_TRIES if study is not None else 0):
      assert study is not None
      async with self._lock:
        await self._quiet(worker, study, busy)
        if (known := (await asyncio.to_thread(self._read)).get(study.key)) is None:  # by another stage, or another node
          try:
            known = await self._found(study, busy)
          except EngineError as error:
            log(1, "%s: it could not be found out in which calls it is exact: %s", model.shard, error)
            continue
          log(1, "%s: exact with %s", model.shard, known)
          try:
            await asyncio.to_thread(self._keep, study.key, known)
          except OSError as error:
            log(0, "what was found out about %s cannot be kept: %s", model.shard, in_words(error))
      await worker.thread.run(model.learn, known)
      return known
    return None

  @staticmethod
  async def _found(study: Study, busy: Callable[[], bool]) -> Exactness:
    """Raises `EngineError`."""
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
    loop = asyncio.get_running_loop()
    since = loop.time()
    while loop.time() - since < _QUIET_S:
      await asyncio.sleep(_POLL_S)
      if busy():
        since = loop.time()
      elif worker.room < study.n_bytes or memory().available < 2 * study.n_bytes:
        await asyncio.sleep(_LATER_S)
        since = loop.time()


def _plausible(value: list[object]) -> Exactness:
  """Raises `ValueError`, `TypeError`."""
  decode_rows, multiple, joined, draft_rows, as_prompt = value
  numbers = decode_rows, multiple, draft_rows
  if not all(isinstance(n, int) and 0 <= n <= MOST_MULTIPLE for n in numbers) or not multiple:
    raise ValueError(f"no exactness: {value}")
  return Exactness(int(str(decode_rows)), int(str(multiple)), bool(joined), int(str(draft_rows)), bool(as_prompt))
