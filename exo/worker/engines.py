"""The engines of one worker: each imported when it is first used, on the device thread like all that it does."""

from __future__ import annotations

from collections.abc import Sequence

from exo.inference.engine import InferenceEngine
from exo.inference.engines import EngineChoice, load_engine
from exo.inference.weights.checkpoint import Checkpoint


class WorkerEngines:
  """`choices` are those that can use the worker's device, the best first. There is at least one."""
  def __init__(self, choices: Sequence[EngineChoice]) -> None:
    self.choices = tuple(choices)
    self._instances: dict[str, InferenceEngine] = {}

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(choice.name for choice in self.choices)

  def for_model(self, checkpoint: Checkpoint) -> str:
    """The name of the engine that runs this model here."""
    del checkpoint  # until figures of engines decide
    return self.choices[0].name

  def instance(self, name: str) -> InferenceEngine:
    """On the device thread. Raises what the engine's import raises."""
    if name not in self._instances:
      self._instances[name] = load_engine(name)
    return self._instances[name]

  @property
  def in_use(self) -> tuple[str, ...]:
    """Those that have been imported; before there are any, the one that would be first."""
    return tuple(self._instances) or self.names[:1]

  def renew(self) -> tuple[str, ...]:
    """From now on new instances of those that were in use, which are named."""
    names = self.in_use
    self._instances.clear()
    return names
