"""When a ring is slower than one of its nodes would be: the layers take their time anyway, the hops are on top."""

from __future__ import annotations

from collections.abc import Sequence

_WORTH_SAYING = 1.25


def slow_link_hint(lap_ms: float, compute_ms: Sequence[float]) -> str | None:
  """What to say of a plan whose laps take `lap_ms`, of which its stages compute `compute_ms`; None if nothing.

  One stream passes the stages one after the other, so a node that could hold the whole model would need about the sum
  of their times.
  """
  alone_ms = sum(compute_ms)
  if len(compute_ms) < 2 or alone_ms <= 0 or lap_ms < _WORTH_SAYING * alone_ms:
    return None
  return (
      f"slow links: {lap_ms - alone_ms:.1f} of {lap_ms:.1f} ms a token go into hops between nodes. One node that can hold "
      f"the model would be about {lap_ms / alone_ms:.1f} times as fast for one request: try it with "
      "--discovery-module none, or use a better link"
  )
