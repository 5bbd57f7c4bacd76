"""One frame's worth of work, and how the scheduler puts it together."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from exo.inference.engine import BatchEntry, LogitsOf, TokenIds
from exo.networking.messages import SequenceOpen
from exo.orchestration.sequence import RunningSequence


class Step(msgspec.Struct, frozen=True):
  """One frame's worth of work; fields are as in `Frame`."""
  number: int
  entries: tuple[BatchEntry, ...]
  token_ids: TokenIds
  opens: tuple[SequenceOpen, ...]
  drops: tuple[int, ...]
  run: int = 1
  ends: tuple[int, ...] = ()
  truncates: tuple[tuple[int, int], ...] = ()
  copies: tuple[tuple[int, int, int], ...] = ()


@dataclass(slots=True)
class StepDraft:
  """A step while it is put together.

  `settled` is what each running sequence had computed in earlier steps, `sources` are kept caches that it copies or makes.
  """
  settled: dict[int, int]
  entries: list[BatchEntry] = field(default_factory=list)
  tokens: list[int] = field(default_factory=list)
  opens: list[SequenceOpen] = field(default_factory=list)
  truncates: list[tuple[int, int]] = field(default_factory=list)
  copies: list[tuple[int, int, int]] = field(default_factory=list)
  sources: set[int] = field(default_factory=set)

  def add(self, sequence: RunningSequence, token_ids: list[int], logits: LogitsOf) -> None:
    if sequence.cut:
      self.truncates.append((sequence.number, sequence.computed))
      sequence.cut = False
    self.entries.append(
        BatchEntry(sequence.number, sequence.computed, len(token_ids), logits, sequence.far, sequence.request.exact)
    )
    self.tokens.extend(token_ids)
