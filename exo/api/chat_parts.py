"""What the answer of a chat model consists of, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
  text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
  text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
  """A call to `name`; its arguments follow in pieces."""
  index: int
  name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
  index: int
  text: str


Part = Content | Reasoning | CallBegin | CallArguments


class AnswerParser(Protocol):
  """Reads one answer: `push` its text as it comes, `finish` at its end; both give what is certain by then.

  The pieces may be cut anywhere: joined, their parts are the same. No text is lost, and nothing is raised: what is no call
  that the request allows is content.
  """
  @property
  def called(self) -> bool:
    """Whether a call has begun."""

  @property
  def thinking(self) -> bool:
    """Whether what comes next is a thought, as far as is known."""

  def push(self, text: str) -> list[Part]:
    ...

  def finish(self) -> list[Part]:
    ...


def overlap(text: str, markers: tuple[str, ...]) -> int:
  """How many characters at the end of `text` begin one of the markers."""
  longest = min(len(text), max((len(m) for m in markers), default=1) - 1)
  return next((n for n in range(longest, 0, -1) if any(m.startswith(text[-n:]) for m in markers)), 0)
