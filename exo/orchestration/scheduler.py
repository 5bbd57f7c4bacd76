"""What a plan's first stage computes next: the policy of continuous batching, without any waiting or sending.

Decodes of all running sequences join into steps, as many at once as there are stages; prompts are cut into chunks that
leave the decodes their pace. A sequence that waits for its next token is in no step. Caches of finished requests are kept
until their room is needed, and a new prompt begins with what of it one of them holds.

A request that lost its ring brings the tokens that its client has (`Request.replay_ids`). They are fed in steps of
the widths in which they were first computed, since other shapes differ in the last bits; as all of them are known, one
sequence may be in every step in flight.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from exo.inference.engine import BatchEntry, LogitsOf
from exo.inference.exactness import Exactness
from exo.networking.messages import EMPTY_TOKEN_IDS, Request, SequenceOpen, SequenceToken
from exo.orchestration.admission import Admission
from exo.orchestration.drafter import Drafter
from exo.orchestration.fair_clock import FairClock, share_of
from exo.orchestration.kv_room import KvRoom, Limits
from exo.orchestration.prompt_chunks import PromptChunks
from exo.orchestration.reuse import Reuse
from exo.orchestration.sequence import RunningSequence
from exo.orchestration.step import Step, StepDraft
from exo.orchestration.waiting_line import WaitingLine


@dataclass(frozen=True, slots=True)
class Counts:
  """For metrics and admission."""
  running: int
  waiting: int
  steps_in_flight: int
  reserved_kv_tokens: int
  kept: int = 0
  kept_kv_tokens: int = 0


@dataclass
class Scheduler:
  """Not thread-safe; every method returns at once."""
  limits: Limits
  drafter: Drafter = field(default_factory=Drafter)
  chunks: PromptChunks = field(init=False)
  room: KvRoom = field(init=False)
  admission: Admission = field(init=False)
  exactness: Exactness = field(init=False)
  reuse: Reuse = field(init=False)
  _line: WaitingLine = field(init=False)
  _prompt_turns: FairClock = field(default_factory=FairClock)
  _running: dict[int, RunningSequence] = field(default_factory=dict)
  _in_flight: dict[int, tuple[BatchEntry, ...]] = field(default_factory=dict)
  _next_step: int = 1
  _prompts_behind: int = 0  # steps of prompts let out since the last step of decodes
  _even_chunk: int = 0  # of the prompts that are being computed alone

  def __post_init__(self) -> None:
    self.chunks = PromptChunks(self.limits.stages, self.limits.step_tokens)
    self.room = KvRoom(self.limits, self._running)
    self.admission = Admission(self.room, self._running)
    self._line = self.admission.line
    self.reuse = Reuse(self.room, self.admission, self._running)
    self._learn_exactness(self.limits.exactness)

  def learn(self, stage: int, exactness: Exactness) -> None:
    """A stage has found out more about its calls."""
    of = self.limits.exactness
    self._learn_exactness((*of[:stage], exactness, *of[stage + 1:]))

  def _learn_exactness(self, of_stages: tuple[Exactness, ...]) -> None:
    self.limits = replace(self.limits, exactness=of_stages)
    self.exactness = self.reuse.exactness = Exactness.of_all(of_stages)
    self.room.most_step = self.limits.step_tokens + self.exactness.most_piece

  @property
  def waiting(self) -> int:
    return len(self._line)

  @property
  def counts(self) -> Counts:
    return Counts(
        len(self._running), len(self._line), len(self._in_flight), self.room.reserved, len(self.room.kept),
        self.room.kept.tokens
    )

  @property
  def last_step(self) -> int:
    """The number of the one that was let out last."""
    return self._next_step - 1

  def add(self, request: Request, most_wait_s: float = math.inf) -> list[Request]:
    """Queue a request; see `Admission.add`."""
    return self.admission.add(request, most_wait_s)

  def cancel(self, request_id: str) -> bool:
    """Forget all choices of a request, waiting or running; False when there were none."""
    waited = self._line.forget(lambda request: request.request_id == request_id)
    numbers = [s.number for s in self._running.values() if s.request.request_id == request_id]
    for number in numbers:
      self._finish(number)
    return bool(numbers) or waited

  @property
  def running(self) -> list[RunningSequence]:
    return list(self._running.values())

  def settled(self, sequence: RunningSequence) -> int:
    """How many of its tokens are computed; those in flight are not."""
    flying = (e.position for entries in self._in_flight.values() for e in entries if e.sequence == sequence.number)
    return min(flying, default=sequence.computed)

  def requests(self) -> list[Request]:
    """Everything that is waiting or running."""
    return [*(s.request for s in self._running.values()), *self._line]

  def _sequences_in(self, step: int) -> list[RunningSequence]:
    found = (self._running.get(entry.sequence) for entry in self._in_flight.get(step, ()))
    return [sequence for sequence in found if sequence is not None and sequence.first_step <= step]

  # the next step

  def next_step(self, run: int = 1) -> Step | None:
    """The next step, or None when nothing can be done until a result comes. Freed sequences alone make a step too.

    A step of decodes alone may be a `run`, on a plan of one stage.
    """
    limits = self.limits
    ahead = len(self._in_flight) - limits.stages
    if ahead > 0 or (ahead == 0 and limits.stages == 1):
      return None
    decoding = prompts = False
    for sequence in self._running.values():
      if sequence.computed < sequence.prompt_tokens:
        prompts = True
      elif sequence.prompt_tokens < len(sequence.tokens):
        decoding = True
    self._make_way()
    prompts = prompts or self.admission.fits()
    # where prompts are computed, one frame more lies ready, so that no stage waits for the others' pace
    if ahead == 0 and decoding and not prompts:
      return None
    if self.room.kept:
      self.room.make_room(0)
    draft = StepDraft({s.number: s.computed for s in self._running.values()} if self._line else {})
    self._add_decodes(draft, prompts)
    if draft.entries:
      self._prompts_behind = 0
    if prompts and (not draft.entries or limits.stages == 1):  # on a ring, prompts go in frames of their own
      budget = limits.step_tokens - len(draft.tokens)
      # every stage computes the decodes and `stages` - 1 prompts by turns: one more would make the decodes wait for it
      if limits.stages == 1 or not decoding or self._prompts_behind < limits.stages - 1:
        self._add_prompts(draft, min(budget, self.chunks.beside_decodes) if decoding else budget, alone=not decoding)
        self._prompts_behind += bool(draft.entries)
    return self._let_out(draft, run)

  def _make_way(self) -> None:
    """Another share's turn has come, and there is no place."""
    for sequence in self.admission.giving_up(self._in_flight.values()):
      self._finish(sequence.number, again=True)
      self._line.put_back(sequence.again())

  def _let_out(self, draft: StepDraft, run: int) -> Step | None:
    if not (draft.entries or draft.opens or self.room.untold):
      return None
    number, self._next_step = self._next_step, self._next_step + 1
    drops, ends = self.room.tell()
    if draft.entries:
      self._in_flight[number] = tuple(draft.entries)
    ids = np.asarray(draft.tokens, np.int32) if draft.tokens else EMPTY_TOKEN_IDS
    if run > 1:
      room = all(s.computed + run <= self.limits.max_context for s in self._running.values())
      alone = self.limits.stages == 1 and bool(ids.size) and all(e.n_tokens == 1 and e.logits for e in draft.entries)
      run = run if room and alone else 1
    return Step(
        number, tuple(draft.entries), ids, tuple(draft.opens), drops, run, ends, tuple(draft.truncates),
        tuple(draft.copies)
    )

  def _chunk_alone(self) -> int:
    """The same for all steps of the prompts that are there together: it is the greatest one that the stages wait for."""
    if not self._prompt_steps:
      self._even_chunk = 0
    left = sum(s.prompt_left for s in self._running.values()) + self._line.prompt_tokens
    self._even_chunk = max(self._even_chunk, self.chunks.alone(left))
    return self._even_chunk

  @property
  def _prompt_steps(self) -> int:
    """Steps in flight that compute prompts alone."""
    return sum(1 for entries in self._in_flight.values() if not any(self._decodes(e) for e in entries))

  def _decodes(self, entry: BatchEntry) -> bool:
    sequence = self._running.get(entry.sequence)
    return sequence is None or entry.position >= sequence.prompt_tokens

  def _add_decodes(self, draft: StepDraft, prompts: bool) -> None:
    limits, replaying, ready, decoding = self.limits, [], [], 0
    for sequence in self._running.values():
      if sequence.computed >= sequence.prompt_tokens:
        known = len(sequence.tokens) - sequence.computed
        if known > 1:  # the token after the next one too
          replaying.append(sequence)
        else:
          decoding += 1
          if known:
            ready.append(sequence)
    if limits.stages > 1 and prompts:
      # all decodes share a frame, so that the frames between them can be prompts
      if len(self._in_flight) > self._prompt_steps:
        return
    elif limits.stages > 1:
      # leave some for the other frames, so that every stage has work at once; whoever has waited longest comes first
      ready.sort(key=lambda s: (s.stepped, s.generated))
      ready = ready[:self._share(ready, -(-decoding // limits.stages))]
    ready = ready[:limits.step_tokens]
    may_draft = 0 < len(ready) <= limits.max_drafting and not prompts and not replaying
    room = limits.step_tokens - len(ready)
    for sequence in ready:
      self.reuse.keep_copy(sequence, draft)
      drafts: list[int] = []
      if may_draft:
        left = min(
            self.admission.needed(sequence.request) - len(sequence.tokens) - 1, room, self._most_drafts(sequence)
        )
        drafts = self.drafter.propose(sequence, left)
        room -= len(drafts)
      token_ids = [sequence.tokens[sequence.computed], *drafts]
      draft.add(sequence, token_ids, LogitsOf.ALL if drafts else LogitsOf.LAST)
      sequence.stepped = self._next_step
      sequence.computed += 1
    for sequence in replaying:
      self.reuse.keep_copy(sequence, draft)
      again, stay = sequence.replay_step(self._most_drafts(sequence) + 1)
      room -= len(again)
      if room < 0 and draft.entries:
        break
      draft.add(sequence, again, LogitsOf.NONE)
      sequence.computed += stay
      sequence.cut = stay < len(again)

  def _share(self, ready: list[RunningSequence], share: int) -> int:
    """Of those that are ready: where each call has room for few, so many that the last call of a stage is full, too."""
    rows = self.exactness.decode_rows
    return share - share % rows if 0 < rows < share and all(s.request.exact for s in ready) else share

  def _most_drafts(self, sequence: RunningSequence) -> int:
    rows = self.exactness.draft_rows
    return rows - 1 if rows and sequence.request.exact else sys.maxsize

  def _add_prompts(self, draft: StepDraft, budget: int, alone: bool) -> None:
    begun = [s for s in self._running.values() if s.prompt_left]
    following = self._line.next()
    # no share waits until the long prompts of another are through
    elsewhere = following is not None and share_of(following) not in {share_of(s.request) for s in begun}
    if elsewhere and budget >= 2 and (first := self._admit(draft)) is not None:
      begun.append(first)  # before its part is sized: what it finds in a kept cache is not computed
    if alone:
      budget = min(budget, self._chunk_alone())
    begun.sort(key=lambda s: self._prompt_turns.had(share_of(s.request)))
    least = 0
    for sequence in begun:  # the first one goes on, however large the pieces are that it must be computed in
      taken = self._chunk(sequence, budget, draft, must=not least)
      budget, least = budget - taken, least + taken
    while budget >= 2 and (admitted := self._admit(draft)) is not None:
      taken = self._chunk(admitted, budget, draft, must=not least)
      if not taken:
        break
      budget, least = budget - taken, least + taken

  def _chunk(self, sequence: RunningSequence, budget: int, draft: StepDraft, must: bool) -> int:
    """Put the next part of a prompt into the step; returns the tokens that it took: 0 where no part fits, unless it `must`.

    It ends where a part may: a prompt does not depend on what ran beside it.
    """
    left, exactness = sequence.prompt_left, self.exactness
    self.reuse.keep_copy(sequence, draft)
    to_mark = min((mark - sequence.computed for mark in sequence.marks), default=left)
    count = exactness.piece(sequence.computed, left, min(budget, to_mark))
    if not count and must and budget > 0:
      count = exactness.smallest(sequence.computed, left)
    if not count:
      return 0
    last = count == left and not sequence.request.replay_ids
    if sequence.request.embed:
      wanted = LogitsOf.HIDDEN
    elif sequence.request.prompt_logprobs is not None:
      wanted = LogitsOf.ALL
    else:
      wanted = LogitsOf.LAST if last else LogitsOf.NONE
    draft.add(sequence, sequence.tokens[sequence.computed:sequence.computed + count], wanted)
    sequence.computed += count
    self._prompt_turns.turn(share_of(sequence.request))
    self._prompt_turns.charge(share_of(sequence.request), count)
    return count

  # admission and memory

  def _admit(self, draft: StepDraft) -> RunningSequence | None:
    """The next waiting request as a sequence, if there is a row and memory for it."""
    request = self._line.next()
    if request is None or not self.admission.has_room(request):
      return None
    match, soon = self.reuse.find(request, draft)
    if soon:  # a step later, more of its prompt will be there to copy
      return None
    needed = self.admission.claim(request)
    place = self.room.place(match, needed, draft.sources)
    if place is None:
      return None
    number, length = place
    self._line.take(request)
    prompt = len(request.prompt_ids)
    sequence = RunningSequence(
        number, request, needed, [*request.prompt_ids, *request.replay_ids], self._next_step, length,
        self.admission.is_far(request)
    )
    sequence.as_prompt = self.reuse.as_prompt(sequence, match)
    self._running[number] = sequence
    self.room.reserved += needed
    sequence.marks = self.reuse.marks(sequence)
    told = replace(
        request,
        prompt_ids=request.prompt_ids if request.sampling.needs_prompt else (),
        share="",
        cache_salt="",
        max_tokens=min(request.max_tokens, max(1, needed - prompt))
    )
    draft.opens.append(SequenceOpen(number, told, prompt, match.sequence if match else 0, length))
    return sequence

  # results

  def on_result(
      self,
      step: int,
      tokens: tuple[SequenceToken, ...],
      refused: tuple[int, ...] = (),
      compute_ms: float = 0.0,
      lap_ms: float | None = None,
  ) -> None:
    """A step came back, with several tokens of a sequence after a run or right drafts.

    Those of sequences cancelled meanwhile are ignored. `refused` sequences begin again without help.
    """
    entries = self._in_flight.pop(step, ())
    decodes = [entry for entry in entries if self._decodes(entry)]  # before sequences end, and are not known any more
    counts: dict[int, int] = {}
    for token in tokens:
      sequence = self._running.get(token.sequence)
      if sequence is None or step < sequence.first_step:
        continue
      if token.sequence in counts:  # the caches hold the token before this one too
        sequence.computed += 1
      counts[token.sequence] = counts.get(token.sequence, 0) + 1
      if not token.finish_reason:
        sequence.tokens.append(token.token_id)
        sequence.mu = token.mu
      if token.finish_reason or len(sequence.tokens) > self.limits.max_context:
        self.admission.estimate.learn_answer(sequence.request, sequence.generated)
        self._finish(token.sequence)
    if lap_ms is not None:
      prompt_tokens = sum(entry.n_tokens for entry in entries) - sum(entry.n_tokens for entry in decodes)
      self.admission.estimate.learn_step(lap_ms / 1e3, len(counts), sum(counts.values()), prompt_tokens)
    if len(decodes) == len(entries):
      self._learn(decodes, counts, compute_ms)
    for number in refused:
      self._begin_again(number, step)

  def _learn(self, entries: list[BatchEntry], counts: dict[int, int], compute_ms: float) -> None:
    """What drafts of a step of decodes were worth, and which caches they left too long."""
    if not self.limits.max_drafting:
      return
    right = 0
    for entry in entries:
      if entry.n_tokens > 1 and entry.sequence in counts:
        accepted = counts[entry.sequence] - 1
        right += accepted
        self.drafter.learn(entry.sequence, entry.n_tokens - 1, accepted)
        sequence = self._running.get(entry.sequence)
        if sequence is not None:
          sequence.cut = accepted < entry.n_tokens - 1
          sequence.note_wide(entry.position, counts[entry.sequence], entry.n_tokens)
    if counts and all(entry.logits for entry in entries):
      widths = [entry.n_tokens for entry in entries]
      self.drafter.observe(widths, right, compute_ms, max(counts.values()) if max(widths) == 1 else 1)

  def _begin_again(self, number: int, step: int) -> None:
    sequence = self._running.get(number)
    if sequence is not None and sequence.first_step <= step:
      self.reuse.anew.add(sequence.request.request_id)
      self._finish(number, keep=False, again=True)
      self._line.put_first(sequence.request)

  def on_failure(self, step: int) -> list[Request]:
    """A step was lost; its requests are forgotten and returned."""
    failed = self._sequences_in(step)
    self.room.forget(entry.sequence for entry in self._in_flight.pop(step, ()))
    if self.limits.indivisible:  # nobody knows which copies were made
      self.forget_kept()
    for sequence in failed:
      self._finish(sequence.number, keep=False)
    return [sequence.request for sequence in failed]

  def fail(self, numbers: Iterable[int], step: int) -> list[Request]:
    """These sequences of a step went wrong, the others did not; their requests are forgotten and returned."""
    numbers = tuple(numbers)
    self.room.forget(numbers)
    found = (self._running.get(number) for number in numbers)
    failed = [sequence for sequence in found if sequence is not None and sequence.first_step <= step]
    for sequence in failed:
      self._finish(sequence.number, keep=False)
    return [sequence.request for sequence in failed]

  def forget_kept(self) -> None:
    """Nothing begins any more with what finished requests have left in the caches."""
    self.room.forget(list(self.room.kept))

  def _finish(self, number: int, keep: bool = True, again: bool = False) -> None:
    sequence = self._running.pop(number, None)
    if sequence is None:
      return
    self.drafter.forget(number)
    if not again:
      self.reuse.anew.discard(sequence.request.request_id)
    self._line.left(sequence.request, 0 if again else sequence.computed)
    self.room.release(sequence, keep)
