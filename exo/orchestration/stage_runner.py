"""One node's stage of one open plan: frames in, frames or tokens out, computed in order on the device thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from msgspec import structs

from exo.errors import (
    CacheReuseError,
    EngineError,
    ExoError,
    PeerUnreachableError,
    PlanClosedError,
    ProtocolError,
    to_wire,
)
from exo.inference.device_thread import DeviceThread
from exo.inference.engine import Activation, Batch, BatchEntry, LogitsOf, StageModel
from exo.inference.grammar import GrammarCompiler
from exo.log import enabled, log
from exo.networking.messages import (
    EMPTY_TOKEN_IDS,
    Failure,
    Frame,
    Message,
    RequestFailed,
    SequenceOpen,
    SequenceToken,
    StepFailed,
    StepResult,
    TokenDelivery,
)
from exo.orchestration.awake_cores import AwakeCores
from exo.orchestration.meter import Meter
from exo.orchestration.token_head import TokenHead
from exo.topology.ring_plan import RingPlan

CHECK_SEQUENCE = 0  # schedulers count from 1
Send = Callable[[str, Message], None]


class _Outcome(msgspec.Struct, frozen=True):
  """What a frame became: hidden states for the next stage, or the tokens of the last one.

  `frame` is what was computed, without the entries that this stage refused.
  """
  frame: Frame
  compute_ms: float
  hidden: Activation | None = None
  tokens: Sequence[SequenceToken] = ()
  deliveries: Sequence[tuple[str, TokenDelivery | RequestFailed]] = ()


class StageRunner:
  """`feed` never waits; at most as many frames are on their way as the first stage lets out.

  `at_rest` is called with a frame that has left when no other waits: what the next one would have to wait for can be done.
  """
  def __init__(
      self,
      plan: RingPlan,
      node_id: str,
      model: StageModel,
      device: DeviceThread,
      send: Send,
      meter: Meter,
      engine_failed: Callable[[StageRunner, Frame, ExoError], ExoError],
      awake: AwakeCores,
      at_rest: Callable[[Frame], None],
      grammars: GrammarCompiler | None = None
  ) -> None:
    self.plan, self.model = plan, model
    self._node_id, self._engine_failed = node_id, engine_failed
    self._device, self._send, self._meter = device, send, meter
    self._awake = awake if len(plan.stages) > 1 else None
    self._at_rest = at_rest
    self._next = plan.next_of(node_id)
    self._head = TokenHead(plan.plan_id, grammars)
    self._known: set[int] = set()
    self._refused: set[int] = set()
    self.kept: set[int] = set()  # sequences that are over and whose caches are here for others to begin with
    self._waiting = 0
    self._closed = False
    self.compute_ms = 0.0

  @property
  def sequences(self) -> int:
    return len(self._known)

  @property
  def idle(self) -> bool:
    """No sequence is open, kept caches aside, and no frame is on its way."""
    return not self._known and not self._waiting

  def feed(self, frame: Frame) -> None:
    """Compute a frame after those before it, and pass on what comes of it."""
    self._waiting += 1
    if self._awake is not None:
      self._awake.hold()
    arrived = time.perf_counter()
    self._device.submit(lambda: self._compute(frame), lambda outcome, error: self._done(frame, arrived, outcome, error))

  async def close(self) -> None:
    """Let nothing more out and give the model's memory back, after the frames that wait."""
    self._closed = True
    await self._device.run(self.model.close)

  async def check(self, like: Frame) -> None:
    """Compute a small step of no sequence's, shaped as that frame was. Raises whatever the engine raises."""
    await self._device.run(check_step, self.model, like)

  def _done(self, frame: Frame, arrived: float, outcome: _Outcome, error: BaseException | None) -> None:
    self._waiting -= 1
    if self._closed:
      return
    try:
      if error is None:
        self._pass_on(outcome, (time.perf_counter() - arrived) * 1e3)
        self._meter.stage_computed(self.plan.model_id, len(frame.entries), len(frame.token_ids), outcome.compute_ms)
        if not self._waiting:
          self._at_rest(frame)
        return
    except PeerUnreachableError as unreachable:
      error = unreachable
    if not isinstance(error, ExoError):  # an engine may raise anything, and the client must hear of it
      error = EngineError(f"{type(error).__name__}: {error}")
    if isinstance(error, EngineError):
      log(0, "the engine failed in step %d of %s: %s", frame.step, self.plan.plan_id, error)
      error = self._engine_failed(self, frame, error)
    self._fail(frame, error)

  def _compute(self, frame: Frame) -> _Outcome:
    """On the device thread."""
    if self._closed:
      raise PlanClosedError(f"plan {frame.plan_id} is closed")
    started = time.perf_counter()
    self._change_caches(frame)
    if self._refused:
      frame = self._without_refused(frame)
    if not frame.entries:
      return _Outcome(frame, self._note_time(frame, started))
    for entry in frame.entries:
      if entry.sequence not in self._known:
        raise ProtocolError(f"a step for sequence {entry.sequence}, which is not open")
    batch = Batch(frame.entries, frame.token_ids, frame.hidden)
    if self._next is not None:
      hidden = self.model.step(batch)
      return _Outcome(frame, self._note_time(frame, started), hidden)
    tokens, deliveries = self._finish(batch)
    if frame.run > 1:
      self._go_on(frame, tokens, deliveries)
    return _Outcome(frame, self._note_time(frame, started), None, tokens, deliveries)

  def _change_caches(self, frame: Frame) -> None:
    """Everything that a frame says about sequences, before it is computed."""
    for sequence in frame.drops:
      self.model.drop(sequence)
      self._refused.discard(sequence)
    for sequence in (*frame.drops, *frame.ends):
      self._head.drop(sequence)
      self._known.discard(sequence)
    if frame.ends or frame.drops or frame.opens:
      self.kept = (self.kept | set(frame.ends)) - set(frame.drops) - {opened.sequence for opened in frame.opens}
    for sequence, length in frame.truncates:
      self.model.truncate(sequence, length)
    for opened in frame.opens:
      self._known.add(opened.sequence)
      if opened.reused:
        self._begin_with_cache(opened)
      if self._next is None:
        self._head.open(opened)

  def _begin_with_cache(self, opened: SequenceOpen) -> None:
    try:
      if opened.source == opened.sequence:
        self.model.truncate(opened.sequence, opened.reused)
      else:
        self.model.copy(opened.source, opened.sequence, opened.reused)
    except CacheReuseError as error:
      log(2, "sequence %d is computed anew: %s", opened.sequence, error)
      self._refused.add(opened.sequence)

  def _without_refused(self, frame: Frame) -> Frame:
    """The frame without entries of sequences that this stage could not begin."""
    refused = {entry.sequence for entry in frame.entries} & self._refused
    if not refused:
      return frame
    wanted = np.repeat([e.sequence not in refused for e in frame.entries], [e.n_tokens for e in frame.entries])
    return structs.replace(
        frame,
        entries=tuple(e for e in frame.entries if e.sequence not in refused),
        token_ids=frame.token_ids[wanted],
        hidden=None if frame.hidden is None else frame.hidden[wanted],
        refused=(*frame.refused, *sorted(refused))
    )

  def _finish(self, batch: Batch) -> tuple[list[SequenceToken], list[tuple[str, TokenDelivery | RequestFailed]]]:
    """The last stage's step: entries that want embeddings go their own way through the model."""
    if not any(entry.logits == LogitsOf.HIDDEN for entry in batch.entries):
      return self._head.take(batch.entries, batch.token_ids, self.model.step(batch))
    embedded = batch.only(lambda entry: entry.logits == LogitsOf.HIDDEN)
    tokens, deliveries = self._head.take_hidden(embedded.entries, self.model.hidden_states(embedded))
    others = batch.only(lambda entry: entry.logits != LogitsOf.HIDDEN)
    if others.entries:
      more, more_deliveries = self._head.take(others.entries, others.token_ids, self.model.step(others))
      tokens, deliveries = tokens + more, deliveries + more_deliveries
    return tokens, deliveries

  def _go_on(
      self, frame: Frame, tokens: list[SequenceToken], deliveries: list[tuple[str, TokenDelivery | RequestFailed]]
  ) -> None:
    """Feed the tokens of a run back at once, for the sequences that are not at their end."""
    position = {entry.sequence: entry.position for entry in frame.entries}
    fresh = tokens
    for k in range(1, frame.run):
      going = [token for token in fresh if not token.finish_reason]
      if not going:
        return
      entries = tuple(BatchEntry(t.sequence, position[t.sequence] + k, 1, LogitsOf.LAST) for t in going)
      ids = np.array([t.token_id for t in going], np.int32)
      fresh, more = self._head.take(entries, ids, self.model.step(Batch(entries, ids)))
      tokens.extend(fresh)
      deliveries.extend(more)

  def _note_time(self, frame: Frame, started: float) -> float:
    self.compute_ms = (time.perf_counter() - started) * 1e3
    if enabled(3):
      log(
          3, "step %d of %s: %d entries, %d tokens, %.2f ms", frame.step, frame.plan_id, len(frame.entries),
          len(frame.token_ids), self.compute_ms
      )
    return self.compute_ms

  def _pass_on(self, outcome: _Outcome, spent_ms: float) -> None:
    frame = outcome.frame
    stage_ms = (*frame.stage_ms, outcome.compute_ms, spent_ms)
    if self._next is not None:
      self._send(self._next.node_id, structs.replace(frame, hidden=outcome.hidden, stage_ms=stage_ms))
      return
    if frame.entries or frame.refused:  # first, so that the ring goes on while clients are served
      result = StepResult(frame.plan_id, frame.step, tuple(outcome.tokens), stage_ms, frame.refused)
      self._send(self.plan.first.node_id, result)
    for entry_node, delivery in outcome.deliveries:
      try:
        self._send(entry_node, delivery)
      except PeerUnreachableError:
        log(1, "the entry node %s is gone", entry_node, request=delivery.request_id)

  def _fail(self, frame: Frame, error: BaseException) -> None:
    try:
      if self._next is not None:  # what the frame ends or begins must still reach the stages behind
        self._send(self._next.node_id, structs.replace(frame, entries=(), token_ids=EMPTY_TOKEN_IDS, hidden=None))
      self._send(self.plan.first.node_id, StepFailed(frame.plan_id, frame.step, Failure(*to_wire(error))))
    except PeerUnreachableError:
      log(1, "step %d of %s failed and its first stage is gone: %s", frame.step, frame.plan_id, error)


def check_step(model: StageModel, like: Frame) -> None:
  """Two tokens of a sequence that no request has, computed and forgotten. On the device thread."""
  hidden = None if like.hidden is None else np.zeros((2, like.hidden.shape[1]), like.hidden.dtype)
  try:
    model.step(Batch((BatchEntry(CHECK_SEQUENCE, 0, 2, LogitsOf.LAST), ), np.zeros(2, np.int32), hidden))
  finally:
    model.drop(CHECK_SEQUENCE)
