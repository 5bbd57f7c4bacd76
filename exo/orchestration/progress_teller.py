"""What clients hear while they wait for a first token: their place in the line, then how much of the prompt is computed."""

from __future__ import annotations

import time
from collections.abc import Callable

from exo.errors import ExoError
from exo.log import log
from exo.networking.messages import Message, PromptProgress
from exo.orchestration.scheduler import Scheduler

_EVERY_S = 0.25
_MOST = 32  # messages at once: many wait as long as one, and links carry tokens too


class ProgressTeller:
  """For the requests of one plan that ask for it. Times in seconds."""
  def __init__(
      self,
      plan_id: str,
      scheduler: Scheduler,
      send: Callable[[str, Message], None],
      clock: Callable[[], float] = time.monotonic
  ) -> None:
    self._plan_id, self._scheduler, self._send, self._clock = plan_id, scheduler, send, clock
    self._next_at = 0.0
    self._told: dict[str, PromptProgress] = {}

  def tell(self) -> None:
    """Call whenever something may have moved: it does little unless it is time, and says nothing twice."""
    now = self._clock()
    if now < self._next_at:
      return
    self._next_at = now + _EVERY_S
    found = dict(self._found())
    self._told = {key: told for key, told in self._told.items() if key in found}
    news = [(key, entry) for key, (entry, told) in found.items() if self._told.get(key) != told]
    news.sort(key=lambda one: one[0] in self._told)  # who has heard nothing yet comes first
    for key, entry in news[:_MOST]:
      told = self._told[key] = found[key][1]
      try:
        self._send(entry, told)
      except ExoError as gone:
        log(2, "%s need not hear of its prompt: %s", entry, gone, request=key)

  def _found(self) -> list[tuple[str, tuple[str, PromptProgress]]]:
    """By request: the entry node, and what there is to tell it."""
    found: list[tuple[str, tuple[str, PromptProgress]]] = []
    for sequence in self._scheduler.running:
      request = sequence.request
      if request.progress and not request.replay_ids and sequence.generated == 0:
        processed = min(self._scheduler.settled(sequence), sequence.prompt_tokens)
        told = PromptProgress(
            self._plan_id, request.request_id, 0, sequence.prompt_tokens, min(sequence.reused, processed), processed
        )
        found.append((request.request_id, (request.entry_node, told)))
    for place, request in enumerate(self._scheduler.admission.line, 1):
      if request.progress and not request.replay_ids:
        found.append(
            (request.request_id, (request.entry_node, PromptProgress(self._plan_id, request.request_id, place)))
        )
    return found
