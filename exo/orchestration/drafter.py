"""Speculation without a second model: what followed the same words before is a draft of what follows now.

A draft is verified in the same lap as the token before it (prompt lookup: Saxena, 2023). Verification costs compute, so
drafts must earn it: while they turn out right they may grow; until then a request may waste a small share of what it has
computed so far, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from exo.orchestration.sequence import RunningSequence

_NGRAM = 3
_LONG_MATCH = 8  # tokens that agree before a draft: this is copying, not chance
_WASTE = 0.02  # of a request's compute may go to drafts that are wrong
_PROMPT_TOKEN = 0.1  # a prompt token's compute, in decode steps; less than it is, to be safe
_FREE_RATE = 0.6  # the share of right drafts from which they pay for themselves
_FIRST, _MOST = 2, 15
_SMOOTH = 0.4


@dataclass(slots=True)
class _Lookup:
  """One sequence's n-grams, and what became of its drafts."""
  index: dict[tuple[int, ...], int] = field(default_factory=dict)
  indexed: int = 0  # the n-grams that end before this token are in the index
  rate: float = 0.0
  length: int = _FIRST
  spent: float = 0.0  # decode steps' worth of wrong drafts
  matched: int = 0

  def find(self, tokens: list[int]) -> int:
    """Where the text goes on that ended like `tokens` before; 0 where it never did."""
    for end in range(max(self.indexed, _NGRAM), len(tokens)):
      self.index[tuple(tokens[end - _NGRAM:end])] = end
    self.indexed = max(self.indexed, len(tokens))
    return self.index.get(tuple(tokens[-_NGRAM:]), 0)


class Drafter:
  """Drafts for the sequences of one plan. Costs are learned in units of a step that decodes one token."""
  def __init__(self) -> None:
    self._lookups: dict[int, _Lookup] = {}
    self._single_ms: dict[int, float] = {}  # of a step without drafts, by its number of sequences
    self._wide_ms: dict[int, float] = {}
    self.drafted = self.accepted = 0
    self.compute_ms = self.wasted_ms = 0.0

  def propose(self, sequence: RunningSequence, room: int) -> list[int]:
    """At most `room` tokens that may come after the sequence's last one; often none."""
    tokens = sequence.tokens
    if room < 1 or len(tokens) <= _NGRAM:
      return []
    lookup = self._lookups.setdefault(sequence.number, _Lookup())
    start = lookup.find(tokens)
    if not start:
      return []
    length = min(lookup.length, room, len(tokens) - start)
    lookup.matched = self._agreement(tokens, start)
    free = lookup.rate >= _FREE_RATE or (lookup.rate > 0 and lookup.matched >= _LONG_MATCH)
    cost = self._extra(length)
    if free and lookup.rate * length > 1.1 * cost:
      return tokens[start:start + length]
    earned = _WASTE * (sequence.generated + _PROMPT_TOKEN * sequence.prompt_tokens)
    if lookup.spent + cost > earned:
      return []
    return tokens[start:start + length]

  @staticmethod
  def _agreement(tokens: list[int], start: int) -> int:
    """How many tokens before `start` equal those at the end."""
    count = _NGRAM
    while count < _LONG_MATCH and count < start and tokens[start - count - 1] == tokens[-count - 1]:
      count += 1
    return count

  def _extra(self, length: int) -> float:
    """What verifying so many drafts costs beyond decoding one token, in steps that decode one token."""
    known = [width for width in self._wide_ms if width >= length + 1]
    single_ms = self._single_ms.get(1)
    if known and single_ms:
      return max(0.05, self._wide_ms[min(known)] / single_ms - 1)
    return 0.2 + 0.25 * length

  def learn(self, sequence: int, drafted: int, accepted: int) -> None:
    """A sequence's drafts were verified."""
    self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted
    lookup = self._lookups.get(sequence)
    if lookup is None:
      return
    lookup.rate += _SMOOTH * (accepted / drafted - lookup.rate)
    lookup.spent += self._extra(drafted) * (drafted - accepted) / drafted
    lookup.length = min(_MOST, 2 * lookup.length + 1) if accepted == drafted else max(_FIRST, accepted)

  def observe(self, widths: list[int], accepted: int, ms: float, run: int = 1) -> None:
    """A step of decodes took so long on all stages together; `accepted` drafts of it were right."""
    self.compute_ms += ms
    sequences, drafted = len(widths), sum(widths) - len(widths)
    single_ms = self._single_ms.get(sequences)
    if not drafted:
      self._single_ms[sequences] = ms / run if single_ms is None else single_ms + 0.2 * (ms / run - single_ms)
      return
    if sequences == 1:
      before = self._wide_ms.get(widths[0], ms)
      self._wide_ms[widths[0]] = before + _SMOOTH * (ms - before)
    if single_ms is not None:
      self.wasted_ms += max(0.0, ms - single_ms) * (drafted - accepted) / drafted

  def forget(self, sequence: int) -> None:
    self._lookups.pop(sequence, None)
