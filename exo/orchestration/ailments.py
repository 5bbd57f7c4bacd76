"""Models that a worker cannot run for now, each tried again by itself until it can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from exo.errors import (
    BadNumbersError,
    ModelNotFoundError,
    ModelTooLargeError,
    OtherFilesError,
    OutOfMemoryError,
    in_words,
    one_line,
    without_paths,
)
from exo.inference.shard import Shard
from exo.log import log, say
from exo.model_file import ModelFile
from exo.networking.peer_messages import Ailment
from exo.oldest import forget_oldest
from exo.tasks import TaskOwner

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 300.0
_FORGET_S = 1800.0  # after which a model that works is trusted as at first
_MAX_AILMENTS = 64
_MAX_REASON = 400


@dataclass(frozen=True, slots=True)
class Illness:
  """What a worker could not do: `shard` of a model's files. `entry_nodes` asked for it, where its numbers were bad.

  `no_files` says that it has not had those files, `no_memory` that they did not fit.
  """
  shard: Shard
  file: ModelFile
  reason: str
  numbers: bool
  entry_nodes: frozenset[str]
  no_files: bool
  no_memory: bool


@dataclass(slots=True)
class _History:
  pause_s: float
  healed_at: float


class Ailments:
  """Of the worker that people call `label`. `recover` tries what had failed, and raises as long as it does."""
  def __init__(self, worker: str, label: str, tasks: TaskOwner, recover: Callable[[Illness], Awaitable[None]]) -> None:
    self._worker, self._label, self._tasks, self._recover = worker, label, tasks, recover
    self._ill: dict[str, Illness] = {}
    self._history: dict[str, _History] = {}
    self._healers: dict[str, asyncio.Task[None]] = {}  # of those that are ill

  def __contains__(self, fingerprint: str) -> bool:
    return fingerprint in self._ill

  def told(self) -> tuple[Ailment, ...]:
    """For the other nodes and every screen."""
    return tuple(Ailment(i.shard.model_id, i.file.key, i.reason, self._worker) for i in self._ill.values())

  def fall_ill(
      self, shard: Shard, file: ModelFile, error: BaseException, entry_nodes: frozenset[str] = frozenset()
  ) -> None:
    """From now on the worker takes no part in new plans of the model, until `recover` succeeds."""
    reason, fingerprint = one_line(in_words(error)), file.key
    known = self._ill.get(fingerprint)
    if known is not None:
      entry_nodes |= known.entry_nodes
    elif len(self._ill) >= _MAX_AILMENTS:
      log(0, "%s cannot run %s: %s", self._label, shard, reason)
      return
    self._ill[fingerprint] = Illness(
        shard,
        file,
        without_paths(reason)[:_MAX_REASON],
        isinstance(error, BadNumbersError),
        entry_nodes,
        no_files=isinstance(error, OtherFilesError | ModelNotFoundError),
        no_memory=isinstance(error, ModelTooLargeError | OutOfMemoryError | MemoryError)
    )
    if known is None:
      say(f"{self._label} takes no part in {shard.model_id} for now: {reason}")
      self._healers[fingerprint] = self._tasks.spawn(self._heal(fingerprint), f"heal {shard.model_id}")

  def absolve(self, fingerprint: str, entry_node: str) -> None:
    """Its request's numbers were bad elsewhere, too. Ignored from a node whose request it was not."""
    illness = self._ill.get(fingerprint)
    if illness is not None and illness.numbers and entry_node in illness.entry_nodes:
      del self._ill[fingerprint], self._healers[fingerprint]
      self._history.pop(fingerprint, None)
      log(1, "%s takes part in %s again: its numbers were not its doing", self._label, illness.shard.model_id)

  def forget(self, model_id: str, but: str = "") -> None:
    """Files of that model are here no more, except for those with the fingerprint `but`."""
    for fingerprint, illness in list(self._ill.items()):
      if illness.shard.model_id == model_id and fingerprint != but and not illness.no_files:
        del self._ill[fingerprint], self._healers[fingerprint]
        log(1, "%s: what could not be run of it before is not there any more", model_id)

  async def _heal(self, fingerprint: str) -> None:
    history = self._history.get(fingerprint)
    if history is None or time.monotonic() - history.healed_at > _FORGET_S:
      history = self._history[fingerprint] = _History(_FIRST_PAUSE_S, 0.0)
    forget_oldest(self._history, _MAX_AILMENTS)
    while True:
      await asyncio.sleep(history.pause_s)
      history.pause_s = min(2 * history.pause_s, _LONGEST_PAUSE_S)
      if self._healers.get(fingerprint) is not asyncio.current_task():  # absolved; a new illness has another healer
        return
      illness = self._ill[fingerprint]
      try:
        await self._recover(illness)
      except Exception as error:  # noqa: BLE001 - whatever is wrong still is
        log(1, "%s still cannot run %s: %s", self._label, illness.shard, in_words(error))
        continue
      if self._healers.get(fingerprint) is asyncio.current_task():
        history.healed_at = time.monotonic()
        del self._ill[fingerprint], self._healers[fingerprint]
        say(f"{self._label} takes part in {illness.shard.model_id} again")
      return
