"""What a node keeps of one of its workers: stages are opened there, and what it cannot run is remembered and tried again."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from exo.errors import (
    DrainingError,
    EngineEndedError,
    ModelAsideError,
    ModelTooLargeError,
    NoRoomError,
    OutOfMemoryError,
    PeerLostError,
    PlanClosedError,
    ProtocolError,
)
from exo.inference.shard import Shard
from exo.model_file import ModelFile
from exo.networking.messages import OpenPlan
from exo.orchestration.ailments import Ailments, Illness
from exo.orchestration.crashes import Crashes
from exo.orchestration.kv_leases import KvLeases
from exo.orchestration.residents import Residents
from exo.orchestration.stage_files import StageFiles
from exo.orchestration.stage_opener import OpenedStage, StageOpener
from exo.tasks import TaskOwner
from exo.worker.step_guard import check_step
from exo.worker.studies import Studies
from exo.worker.worker import Worker

# of a load that ended because nobody wants it any more, because others are served, or that was never this node's
_NO_AILMENT = (ModelAsideError, PeerLostError, PlanClosedError, DrainingError, ProtocolError, NoRoomError)


class OpenStages(Protocol):
  """The stages that are open on the workers of a node."""
  residents: Residents
  leases: KvLeases
  studies: Studies

  def find(self, worker: Worker, illness: Illness) -> OpenedStage | None:
    """The stage on that worker that runs these very layers of these files, if there is one."""


class WorkerDesk:
  """For one worker. `stages` has what is open on it."""
  def __init__(self, worker: Worker, files: StageFiles, tasks: TaskOwner, stages: OpenStages) -> None:
    self.worker, self._files, self._stages = worker, files, stages
    self.opener = StageOpener(worker, files, stages.residents, stages.leases, stages.studies)
    self.ailments = Ailments(worker.name, worker.label, tasks, self._recover)
    self._crashes = Crashes(worker.label)

  async def open(self, message: OpenPlan) -> OpenedStage:
    """As `StageOpener.open`. What fails is an ailment from then on, and may make the worker prove itself."""
    shard = message.plan.stages[message.stage].shard
    try:
      if (aside := self._crashes.why_aside(message.fingerprint)) is not None:
        raise aside
      stage = await self.opener.open(message)
    except Exception as error:
      # a plan beside another one may find no room, and is made again when there is some
      no_ailment = (*_NO_AILMENT, ModelTooLargeError) if message.beside else _NO_AILMENT
      is_aside = isinstance(error, EngineEndedError) and self.engine_ended(shard, message.file, error)
      if not (is_aside or isinstance(error, no_ailment)):
        self.ailments.fall_ill(shard, message.file, error)
        self.worker.health.load_failed(message.fingerprint)
      raise
    self.worker.health.loaded()
    self.ailments.forget(shard.model_id, but=message.fingerprint)
    return stage

  def engine_ended(self, shard: Shard, file: ModelFile, error: EngineEndedError) -> bool:
    """A step or load of the model ended the engine's process: the next load starts another, unless that happens too often. Then the model
    is put aside, and True returned."""
    if (aside := self._crashes.note(shard.model_id, file.key, error)) is None:
      return False
    self.ailments.fall_ill(shard, file, aside)
    return True

  async def _recover(self, illness: Illness) -> None:
    """Whether this worker can run its part of a model again. Raises while it cannot."""
    if (aside := self._crashes.why_aside(illness.file.key)) is not None:
      raise aside
    stage = self._stages.find(self.worker, illness)
    if stage is not None:
      hidden_size = None if illness.shard.is_first else stage.bounds.hidden_size
      with suppress(OutOfMemoryError):  # its room is taken by others, whom it computes for
        await self.worker.thread.run(check_step, stage.model, hidden_size)
      return
    if illness.no_files or not await self._files.is_gone(illness.shard, illness.file):
      await self.opener.try_out(illness.shard, illness.file, illness.no_memory)
