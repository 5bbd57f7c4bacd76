"""One stage of one open plan: frames in, frames or tokens out, computed in order on its worker's thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from msgspec import structs

from exo.errors import (
    CacheLostError,
    CacheReuseError,
    EngineEndedError,
    EngineError,
    ExoError,
    PeerUnreachableError,
    PlanClosedError,
    ProtocolError,
    StageSickError,
    in_words,
    to_wire,
)
from exo.inference.engine import Activation, Batch, LogitsOf, StageModel
from exo.inference.grammar import GrammarCompiler
from exo.log import enabled, log
from exo.networking.messages import (
    EMPTY_TOKEN_IDS,
    Failure,
    Frame,
    Message,
    RequestFailed,
    SequenceFailure,
    SequenceOpen,
    SequenceToken,
    StepFailed,
    StepResult,
    TokenDelivery,
)
from exo.oldest import forget_oldest
from exo.orchestration.awake_cores import AwakeCores
from exo.orchestration.failures import tell_failed
from exo.orchestration.meter import Meter
from exo.orchestration.running_step import RunningStep
from exo.orchestration.token_head import Deliveries, TokenHead
from exo.topology.ring_plan import RingPlan
from exo.worker.step_guard import Compute, StepGuard
from exo.worker.worker import Worker

Send = Callable[[str, Message], None]
_LONGEST_REASON = 2000
_MOST_DELIVERED = 256
_EXPECTED_ANSWER = 256  # tokens: what else a request may write is taken as it comes


class StageHost(Protocol):
  """Who is told of what a stage meets. Nothing here may wait."""
  def at_rest(self, frame: Frame) -> None:
    """This frame has left and no other waits: what the next one would have to wait for can be done."""

  def bad_numbers(self, runner: StageRunner, entry_nodes: frozenset[str]) -> None:
    """The stage computed numbers that are not finite, twice, for requests of these nodes."""

  def broken(self, runner: StageRunner, error: StageSickError | EngineEndedError) -> None:
    """The stage can compute nothing any more."""

  def crashed(self, runner: StageRunner, error: ExoError) -> None:
    """What became of a step cannot be told to the plan's first stage."""


class _Outcome(msgspec.Struct, frozen=True):
  """What a frame became: hidden states for the next stage, or the tokens of the last one.

  `frame` is what was computed, without the entries that this stage refused.
  """
  frame: Frame
  compute_ms: float
  hidden: Activation | None = None
  tokens: Sequence[SequenceToken] = ()
  deliveries: Deliveries = ()
  doubted_by: frozenset[str] = frozenset()
  broken: StageSickError | EngineEndedError | None = None


class _Trouble:
  """What went wrong in one step, gathered on the way through it."""
  def __init__(self) -> None:
    self.failures: dict[int, ExoError] = {}
    self.doubtful: set[int] = set()
    self.broken: StageSickError | EngineEndedError | None = None


class StageRunner:
  """Stage number `index` of `plan`. `feed` never waits; at most as many frames are on their way as the first stage lets out."""
  def __init__(
      self,
      plan: RingPlan,
      index: int,
      model: StageModel,
      worker: Worker,
      send: Send,
      meter: Meter,
      host: StageHost,
      awake: AwakeCores,
      grammars: GrammarCompiler | None = None
  ) -> None:
    self.plan, self.index, self.model, self.worker = plan, index, model, worker
    self._host, self._send, self._meter = host, send, meter
    self._awake = awake if len(plan.node_ids) > 1 else None
    self._prompts: dict[int, int] = {}  # tokens of the prompts of all open sequences
    self._requests: dict[int, tuple[str, str]] = {}  # of all open sequences, with their entry nodes
    self._delivered: dict[str, str] = {}  # requests that deliveries went to, and their entry nodes, the latest last
    self._step = RunningStep(model.abort)
    self._guard = StepGuard(model, plan, index, self._prompts, self._step.cancelled)
    self._next = plan.after(index)
    self._head = TokenHead(plan.plan_id, grammars)
    self._refused: set[int] = set()
    self._failed: set[int] = set()  # nothing more is computed of them; their first stage hears why once
    self.kept: set[int] = set()  # sequences that are over and whose caches are here for others to begin with
    self._waiting = 0
    self._changed = -1  # the last step of which the caches have all that its frame says
    self._closed = False
    self.compute_ms = 0.0

  @property
  def sequences(self) -> int:
    return len(self._prompts)

  @property
  def changed_step(self) -> int:
    """The last step whose changes of caches are made."""
    return self._changed

  @property
  def idle(self) -> bool:
    """No sequence is open, kept caches aside, and no frame is on its way."""
    return not self._prompts and not self._waiting

  def feed(self, frame: Frame) -> None:
    """Compute a frame after those before it, and pass on what comes of it."""
    self._waiting += 1
    if self._awake is not None:
      self._awake.hold()
    arrived = time.perf_counter()
    self.worker.thread.submit(
        lambda: self._computed(frame), lambda outcome, error: self._done(frame, arrived, outcome, error)
    )

  def close(self) -> Coroutine[Any, Any, None]:
    """Let nothing more out, from now on, and give the model's memory back after the frames that wait."""
    self._closed = True
    return self.worker.unload(self.model)

  def _done(self, frame: Frame, arrived: float, outcome: _Outcome, error: BaseException | None) -> None:
    self._waiting -= 1
    if self._closed:
      if error is not None and not isinstance(
          error, PlanClosedError
      ):  # nobody waits for it, but it was no mere end of a plan
        log(1, "step %d of %s, which is closed: %s", frame.step, self.plan.plan_id, in_words(error))
      return
    if error is None:
      try:
        self._pass_on(outcome, (time.perf_counter() - arrived) * 1e3)
      except Exception as unexpected:  # noqa: BLE001 - whatever it is, the step's clients must hear of it
        error = unexpected
    if error is not None:
      self._fail(frame, error)
      return
    try:
      self._meter.stage_computed(self.plan.model_id, len(frame.entries), len(frame.token_ids), outcome.compute_ms)
      if outcome.doubted_by:
        self._host.bad_numbers(self, outcome.doubted_by)
      if outcome.broken is not None:
        self._tell_ended(outcome)
        self._host.broken(self, outcome.broken)
      elif not self._waiting:
        self._host.at_rest(frame)
    except Exception as unexpected:  # noqa: BLE001 - the step is through: nobody waits for this
      log(0, "after step %d of %s: %s", frame.step, self.plan.plan_id, in_words(unexpected))

  def _computed(self, frame: Frame) -> _Outcome:
    """On the device thread."""
    try:
      return self._compute(frame)
    except BaseException:
      self._failed |= {entry.sequence for entry in frame.entries}  # who knows what their caches hold
      raise

  def _compute(self, frame: Frame) -> _Outcome:
    if self._closed:
      raise PlanClosedError(f"plan {frame.plan_id} is closed")
    started = time.perf_counter()
    trouble = _Trouble()
    self._change_caches(frame, trouble)
    self._changed = frame.step
    for entry in frame.entries:
      if entry.sequence not in self._prompts:
        raise ProtocolError(f"a step for sequence {entry.sequence}, which is not open")
    if self._refused or self._failed:
      # told of each frame, or a step of which nothing is left would never come back
      frame = self._without(frame, self._refused | self._failed, tell=True)
    hidden: Activation | None = None
    tokens: list[SequenceToken] = []
    deliveries: list[tuple[str, TokenDelivery | RequestFailed]] = []
    if frame.entries:
      batch = Batch(frame.entries, frame.token_ids, frame.hidden)
      with self._step.of(frame.entries, {e.sequence: self._requests[e.sequence][0] for e in frame.entries}):
        if self._next is not None:
          batch, hidden = self._run(batch, self.model.step, trouble)
        else:
          tokens, deliveries = self._finish(batch, trouble)
          if frame.run > 1:
            self._go_on(frame, tokens, deliveries, trouble)
    if trouble.failures:
      frame = self._without_failed(frame, trouble)
    doubted_by = frozenset(self._requests[s][1] for s in trouble.doubtful if s in self._requests)
    return _Outcome(frame, self._note_time(frame, started), hidden, tokens, deliveries, doubted_by, trouble.broken)

  def _run(self, batch: Batch, compute: Compute, trouble: _Trouble) -> tuple[Batch, Activation | None]:
    """(what of the batch could be computed, its rows)."""
    done = self._guard.run(batch, compute)
    trouble.failures |= done.failures
    trouble.doubtful |= done.doubtful
    trouble.broken = done.broken or trouble.broken
    return done.batch, done.rows

  def _change_caches(self, frame: Frame, trouble: _Trouble) -> None:
    """Everything that a frame says about sequences, before it is computed."""
    for sequence in frame.drops:
      self.model.drop(sequence)
      self._refused.discard(sequence)
      self._failed.discard(sequence)  # not when it ends: until all know, a new one may be begun with its cache
    for sequence in (*frame.drops, *frame.ends):
      self._head.drop(sequence)
      self._prompts.pop(sequence, None)
      self._requests.pop(sequence, None)
    if frame.ends or frame.drops or frame.opens:
      self.kept = (self.kept | set(frame.ends)) - set(frame.drops) - {opened.sequence for opened in frame.opens}
    for sequence, length in frame.truncates:
      try:
        self.model.truncate(sequence, length)
      except Exception as error:  # noqa: BLE001 - whatever it is, it is the affair of this sequence
        log(1, "the cache of sequence %d is given up: %s", sequence, in_words(error))
        self._failed.add(sequence)
        trouble.failures[sequence] = CacheLostError(f"{self.plan.name_of(self.index)} lost the cache of this request")
    for sequence, number, length in frame.copies:
      self._keep_copy(sequence, number, length)
    for opened in frame.opens:
      self._prompts[opened.sequence] = opened.prompt_tokens
      self._requests[opened.sequence] = opened.request.request_id, opened.request.entry_node
      self.model.expect(opened.sequence, opened.prompt_tokens + min(opened.request.max_tokens, _EXPECTED_ANSWER))
      if opened.reused:
        self._begin_with_cache(opened)
      if self._next is None:
        try:
          self._head.open(opened)
        except Exception as error:  # noqa: BLE001 - of a grammar, say: it is this request's own
          self._failed.add(opened.sequence)
          trouble.failures[opened.sequence] = error if isinstance(error, ExoError) else EngineError(in_words(error))

  def _keep_copy(self, sequence: int, number: int, length: int) -> None:
    self.kept.add(number)
    try:
      if sequence in self._failed | self._refused:
        raise CacheReuseError("what was computed there went wrong")
      self.model.copy(sequence, number, length)
    except Exception as error:  # noqa: BLE001 - no room for a copy, say: whoever wants to begin with it is refused
      log(2, "no copy of sequence %d is kept: %s", sequence, in_words(error))
      self._failed.add(number)

  def _begin_with_cache(self, opened: SequenceOpen) -> None:
    try:
      if opened.source in self._failed:
        raise CacheReuseError("what was computed there went wrong")
      if opened.source == opened.sequence:
        self.model.truncate(opened.sequence, opened.reused)
      else:
        self.model.copy(opened.source, opened.sequence, opened.reused)
    except Exception as error:  # noqa: BLE001 - no room for a copy, say: it is done without
      log(2, "sequence %d is computed anew: %s", opened.sequence, in_words(error))
      self._refused.add(opened.sequence)

  @staticmethod
  def _without(frame: Frame, unwanted: set[int], tell: bool) -> Frame:
    """The frame without entries of some sequences; `tell` counts them among the refused."""
    gone = {entry.sequence for entry in frame.entries} & unwanted
    if not gone:
      return frame
    kept = [e.sequence not in gone for e in frame.entries]
    wanted = np.repeat(kept, [e.n_tokens for e in frame.entries])
    return structs.replace(
        frame,
        entries=tuple(e for e, keep in zip(frame.entries, kept, strict=True) if keep),
        token_ids=frame.token_ids[wanted],
        hidden=None if frame.hidden is None else frame.hidden[wanted],
        refused=(*frame.refused, *sorted(gone)) if tell else frame.refused
    )

  def _without_failed(self, frame: Frame, trouble: _Trouble) -> Frame:
    self._failed |= set(trouble.failures)
    failed = tuple(
        SequenceFailure(sequence, Failure(kind, message[:_LONGEST_REASON], details))
        for sequence, (kind, message, details) in ((s, to_wire(e)) for s, e in trouble.failures.items())
    )
    frame = self._without(frame, self._failed, tell=False)
    return structs.replace(frame, failed=(*frame.failed, *failed))

  def _finish(self, batch: Batch,
              trouble: _Trouble) -> tuple[list[SequenceToken], list[tuple[str, TokenDelivery | RequestFailed]]]:
    """The last stage's step: entries that want embeddings go their own way through the model."""
    if not any(entry.logits == LogitsOf.HIDDEN for entry in batch.entries):
      return self._sample(batch, trouble)
    embedded, hidden = self._run(
        batch.only(lambda entry: entry.logits == LogitsOf.HIDDEN), self.model.hidden_states, trouble
    )
    tokens, deliveries = ([], []) if hidden is None else self._head.take_hidden(embedded.entries, hidden)
    others = batch.only(lambda entry: entry.logits != LogitsOf.HIDDEN)
    if others.entries:
      more, more_deliveries = self._sample(others, trouble)
      tokens, deliveries = tokens + more, deliveries + more_deliveries
    return tokens, deliveries

  def _sample(self, batch: Batch,
              trouble: _Trouble) -> tuple[list[SequenceToken], list[tuple[str, TokenDelivery | RequestFailed]]]:
    batch, logits = self._run(batch, self.model.step, trouble)
    return ([], []) if logits is None else self._head.take(batch.entries, batch.token_ids, logits)

  def _go_on(
      self, frame: Frame, tokens: list[SequenceToken], deliveries: list[tuple[str, TokenDelivery | RequestFailed]],
      trouble: _Trouble
  ) -> None:
    """Feed the tokens of a run back at once, for the sequences that are not at their end."""
    begun = {entry.sequence: entry for entry in frame.entries}
    fresh = tokens
    for k in range(1, frame.run):
      going = [token for token in fresh if not token.finish_reason]
      if not going or trouble.failures:
        return
      entries = tuple(
          structs.replace(e, position=e.position + k, n_tokens=1, logits=LogitsOf.LAST)
          for e in (begun[t.sequence] for t in going)
      )
      fresh, more = self._sample(Batch(entries, np.array([t.token_id for t in going], np.int32)), trouble)
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
      onward = structs.replace(frame, hidden=outcome.hidden, stage_ms=stage_ms, stage=self.index + 1)
      self._send(self._next.node_id, onward)
      return
    if frame.entries or frame.refused or frame.failed:  # first, so that the ring goes on while clients are served
      result = StepResult(frame.plan_id, frame.step, tuple(outcome.tokens), stage_ms, frame.refused, frame.failed)
      self._send(self.plan.first.node_id, result)
    for entry_node, delivery in outcome.deliveries:
      self._deliver(entry_node, delivery)

  def _tell_ended(self, outcome: _Outcome) -> None:
    """Those whose step ended the engine's process hear it from here: the plan is over before its first stage has heard of the step."""
    error = outcome.broken
    if not isinstance(error, EngineEndedError):
      return
    for failed in outcome.frame.failed:
      if failed.failure.kind == error.kind and failed.sequence in self._requests:
        request_id, entry_node = self._requests[failed.sequence]
        tell_failed(self._send, self.plan.plan_id, request_id, entry_node, error)

  def cancel(self, request_id: str) -> None:
    """Nothing is wanted of a request any more: a long step that it is in ends."""
    self._step.cancel(request_id)

  def cancel_entry(self, entry_node: str, error: ExoError) -> None:
    """What was delivered there may be lost."""
    for request_id in [request_id for request_id, node_id in self._delivered.items() if node_id == entry_node]:
      del self._delivered[request_id]
      tell_failed(self._send, self.plan.plan_id, request_id, entry_node, error)

  def _deliver(self, entry_node: str, delivery: TokenDelivery | RequestFailed) -> None:
    if delivery.request_id not in self._delivered:
      forget_oldest(self._delivered, _MOST_DELIVERED - 1)
      self._delivered[delivery.request_id] = entry_node
    try:
      self._send(entry_node, delivery)
    except PeerUnreachableError:
      log(1, "the entry node %s is gone", entry_node, request=delivery.request_id)
    except Exception as error:  # noqa: BLE001 - its client must not wait for what does not come
      log(0, "a delivery failed: %s", in_words(error), request=delivery.request_id)
      tell_failed(self._send, self.plan.plan_id, delivery.request_id, entry_node, error)

  def _fail(self, frame: Frame, error: BaseException) -> None:
    if not isinstance(error, ExoError):
      log(0, "step %d of %s failed: %s", frame.step, self.plan.plan_id, in_words(error))
    if self._changed != frame.step and (frame.drops or frame.ends or frame.opens or frame.truncates or frame.copies):
      # what it says about sequences was done in part or not at all: its requests begin anew on another plan
      text = f"the caches of {self.plan.name_of(self.index)} could not be changed: {in_words(error)}"
      self._host.crashed(self, PlanClosedError(text))
      return
    try:
      if self._next is not None:  # what the frame ends or begins must still reach the stages behind
        nothing = structs.replace(frame, entries=(), token_ids=EMPTY_TOKEN_IDS, hidden=None, stage=self.index + 1)
        self._send(self._next.node_id, nothing)
      self._send(self.plan.first.node_id, StepFailed(frame.plan_id, frame.step, Failure(*to_wire(error))))
    except PeerUnreachableError:
      log(1, "step %d of %s failed and its first stage is gone: %s", frame.step, frame.plan_id, error)
    except Exception as unexpected:  # noqa: BLE001 - the step's clients must hear of it all the same
      self._host.crashed(self, ExoError(in_words(unexpected)))
