"""Which of the files that a ring holds of one model is run: the one that most of its workers can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exo.inference.model_facts import ModelFacts
from exo.model_file import ModelFile
from exo.orchestration.model_fit import RingWorker

_MOST_TOLD = 3


@dataclass(frozen=True, slots=True)
class Candidate:
  """Files of a model. `holders` are the nodes that have all of them; `is_first`: others are run only if more workers can read
  them.
  """
  file: ModelFile
  facts: ModelFacts
  holders: tuple[str, ...] = ()
  is_first: bool = False


@dataclass(frozen=True, slots=True)
class FileChoice:
  """`why` is for people, in one line."""
  file: ModelFile
  why: str


def all_can_read(model_id: str, candidate: Candidate, workers: Sequence[RingWorker]) -> bool:
  """Whether there is nothing better."""
  return _able(model_id, candidate, workers) == len(workers)


def _able(model_id: str, candidate: Candidate, workers: Sequence[RingWorker]) -> int:
  """How many workers have an engine that can run it."""
  headers = candidate.file.headers
  return sum(worker.for_model(model_id, candidate.facts, headers).cannot is None for worker in workers)


def choose(
    model_id: str,
    candidates: Sequence[Candidate],
    workers: Sequence[RingWorker],
    in_use: ModelFile | None = None
) -> FileChoice:
  """Of at least one: what most workers can read, then what is in use, so that no conversation goes on with other weights because a
  node has left, then what is first, then what most nodes have on their disks. Pure.
  """
  able = {candidate.file: _able(model_id, candidate, workers) for candidate in candidates}

  def rank(candidate: Candidate) -> tuple[int, bool, bool, int, str]:
    file = candidate.file
    return -able[file], in_use is None or file.key != in_use.key, not candidate.is_first, -len(
        candidate.holders
    ), file.key

  chosen, *others = sorted(candidates, key=rank)
  if not others:
    return FileChoice(chosen.file, "no node of the ring holds another one")

  def told(candidate: Candidate) -> str:
    where = f", and it is on {', '.join(candidate.holders[:_MOST_TOLD])}" if candidate.holders else ""
    return f"{able[candidate.file]} of {len(workers)} workers can read it{where}"

  rest = "; ".join(f"of {other.file}, {told(other)}" for other in others[:_MOST_TOLD])
  return FileChoice(chosen.file, f"{told(chosen)}; {rest}")
