"""What one request has met on its way: workers that failed it, and how."""

from __future__ import annotations

from collections.abc import Callable

from exo.errors import BadNumbersError, ExoError, ModelTooLargeError, StageSickError, cause_of
from exo.topology.ring_plan import WorkerId

_MAX_AGAIN = 3
_MAX_ENDED = 1


class Setbacks:
  """Of one request, over all of its attempts."""
  def __init__(self) -> None:
    self._errors: dict[WorkerId, ExoError] = {}
    self._doubted: set[WorkerId] = set()
    self._forgiven: set[WorkerId] = set()
    self._again = self._ended = 0

  @property
  def failed(self) -> frozenset[WorkerId]:
    """Workers that are not asked again."""
    return frozenset(self._errors)

  @property
  def with_bad_numbers(self) -> list[WorkerId]:
    return [worker for worker, error in self._errors.items() if isinstance(error, BadNumbersError)]

  def add(self, worker: WorkerId, error: ExoError) -> None:
    self._errors[worker] = error

  def doubt(self, worker: WorkerId) -> bool:
    """Whether this is the first doubt about a worker."""
    new = worker not in self._doubted
    self._doubted.add(worker)
    return new

  def again(self) -> bool:
    """Count an attempt that failed through nobody's fault; False when there were enough of them."""
    self._again += 1
    return self._again <= _MAX_AGAIN

  def ended(self) -> bool:
    """Count an attempt whose step ended an engine's process; False for the second, since it is probably the request that does it."""
    self._ended += 1
    return self._ended <= _MAX_ENDED

  @property
  def hopeful(self) -> bool:
    """A worker that has failed may be asked again once it is well."""
    return any(worker not in self._forgiven for worker in self._errors)

  def forgive(self, is_sick: Callable[[WorkerId], bool]) -> None:
    """Workers that are well again may be asked again: once, since it is perhaps this request that makes them sick."""
    for worker in [worker for worker in self._errors if worker not in self._forgiven and not is_sick(worker)]:
      del self._errors[worker]
      self._forgiven.add(worker)

  def verdict(self, no_ring: ExoError) -> ExoError:
    """What to tell the client when no ring is left: what failed alike everywhere is the model's error."""
    errors = list(self._errors.values())
    if not errors:
      return no_ring
    if isinstance(no_ring, ModelTooLargeError):  # there are others, and they are too small for it
      return ModelTooLargeError(f"{no_ring.message} ({'; '.join(e.message for e in errors)})", **no_ring.details)
    causes = [cause_of(error) if isinstance(error, StageSickError) else error for error in errors]
    if len({cause.kind for cause in causes}) == 1:
      return causes[-1]
    return StageSickError("; ".join(error.message for error in errors))
