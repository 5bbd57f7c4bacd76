"""What of kept caches a prompt may begin with, and which copies are kept for those to come: the first stage's policy, without any waiting."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np

from exo.inference.exactness import Exactness
from exo.networking.messages import Request
from exo.orchestration.admission import Admission
from exo.orchestration.kv_room import KvRoom
from exo.orchestration.prefix_cache import MIN_REUSED, Match, common_prefix
from exo.orchestration.sequence import RunningSequence, salt_of
from exo.orchestration.step import StepDraft


class Reuse:
  """Of one plan, whose `running` sequences have their KV in `room`. `exactness` is what holds for all stages now, `anew` are ids of requests
  that no cache may help.
  """
  def __init__(self, room: KvRoom, admission: Admission, running: Mapping[int, RunningSequence]) -> None:
    self._room, self._admission, self._running = room, admission, running
    self.exactness = Exactness()
    self.anew: set[str] = set()

  def find(self, request: Request, draft: StepDraft) -> tuple[Match | None, bool]:
    """(what the prompt can begin with, whether waiting a step would give more). Two tokens at least stay to compute."""
    whole = request.prompt_logprobs is not None or request.embed  # every token's result is wanted
    if whole or request.request_id in self.anew or not self._room.limits.keep_caches:
      return None, False
    exactness = self.exactness
    kept_back = exactness.least_piece if request.exact else 2
    prompt, salt = np.asarray(request.prompt_ids[:-kept_back],
                              np.int32), salt_of(request, self._admission.is_far(request))

    def usable(common: int, as_prompt: int) -> int:
      return exactness.whole(min(common, as_prompt)) if request.exact else common

    best, soon = self._room.kept.match(prompt, salt, usable), 0
    if self._room.limits.indivisible:  # what runs is soon too long
      return best, False
    for sequence in self._running.values():
      if sequence.salt != salt:
        continue
      common = common_prefix(prompt, np.asarray(sequence.request.prompt_ids, np.int32))
      ready = usable(min(common, draft.settled.get(sequence.number, 0)), sequence.as_prompt)
      if ready >= MIN_REUSED and (best is None or ready > best.length):
        best = Match(sequence.number, ready, min(ready, sequence.as_prompt))
      soon = max(soon, usable(common, sequence.as_prompt))
    return best, soon >= MIN_REUSED + (best.length if best else 0)

  def as_prompt(self, sequence: RunningSequence, match: Match | None) -> int:
    """See `RunningSequence`. What ends within a piece is computed otherwise where more follows."""
    exactness, request = self.exactness, sequence.request
    if (request.embed or request.prompt_logprobs is not None) and not exactness.as_prompt:
      return 0  # where the results of all rows are wanted, calls are as short as these are large
    if match is not None and (match.as_prompt < match.length or exactness.whole(match.length) < match.length):
      return match.as_prompt
    if exactness.as_prompt and (request.exact or not (exactness.decode_rows or exactness.draft_rows)):
      return sys.maxsize  # what is decoded, too
    return exactness.whole(sequence.prompt_tokens)

  def marks(self, sequence: RunningSequence) -> list[int]:
    """Where copies of it are kept, since its caches cannot be shortened: before what a template puts behind the last message, where
    another text went on otherwise, and, for what need not be exact, at the prompt's end."""
    request, multiple = sequence.request, max(MIN_REUSED, self.exactness.prompt_multiple)
    limits = self._room.limits
    if request.prompt_logprobs is not None or request.embed or not (limits.indivisible and limits.keep_caches):
      return []
    prompt = np.asarray(request.prompt_ids, np.int32)
    ends = [len(prompt) - max(MIN_REUSED, self.exactness.least_piece), self._room.kept.common(prompt, sequence.salt)]
    marks = {end - end % multiple for end in ends if end <= ends[0]}
    if not request.exact:
      marks.add(len(prompt))
    return sorted(mark for mark in marks if mark >= sequence.computed + MIN_REUSED)

  def keep_copy(self, sequence: RunningSequence, draft: StepDraft) -> None:
    """Where it has come to a mark, before it goes on."""
    while sequence.marks and sequence.marks[0] <= sequence.computed:
      if sequence.marks.pop(0) == sequence.computed and (
          number := self._room.copy_of(sequence, draft.sources)
      ) is not None:
        draft.copies.append((sequence.number, number, sequence.computed))
