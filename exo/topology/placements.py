"""Which strategies of placement there are: every file in `placement/` is one, under its own name.

Such a file has one function, `place(model, ring)`: a `Strategy`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import exo.topology.placement
from exo.errors import ConfigError
from exo.topology.ring_plan import RingPlan
from exo.topology.ring_state import ModelNeeds, RingState

Strategy = Callable[[ModelNeeds, RingState], RingPlan]
"""The plan for a model, made of workers of this ring that can run it, none of which gets more than it has room for.

Pure: every node that knows this state makes the same plan. Raises `PeerUnreachableError`, `EngineUnavailableError`,
`ModelTooLargeError` where there is none.
"""


def strategy_names() -> list[str]:
  """Every strategy, by its file."""
  return sorted(module.name for module in pkgutil.iter_modules(exo.topology.placement.__path__) if not module.ispkg)


def load_strategy(name: str) -> Strategy:
  """One strategy, whose plans are checked: it raises `ValueError` instead of giving one that breaks the promise of a `Strategy`.

  Raises `ConfigError` for a name that is none.
  """
  if name not in strategy_names():
    raise ConfigError(f"there is no placement {name!r}: choose {', '.join(strategy_names())}")
  place: Strategy = importlib.import_module(f"exo.topology.placement.{name}").place

  def checked(model: ModelNeeds, ring: RingState) -> RingPlan:
    plan = place(model, ring)
    ring.check(model, plan)
    return plan

  return checked
