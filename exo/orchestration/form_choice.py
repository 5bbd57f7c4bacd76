"""Which form of a known model is to be taken on this machine: the one that the engines here would run best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from exo.inference.offer import EngineOffer, Here, choose
from exo.model_card import ModelCard, Source, WheelSource
from exo.orchestration.model_fit import RingWorker
from exo.orchestration.model_profile import profile_of_card
from exo.packings import FULL
from exo.topology.ring_state import WorkerState
from exo.worker.worker import Worker

_NOBODY = 1 << 30
_FIRST = ("gguf", "mlx", "safetensors")
# engines that are at their best with another format
_FIRST_OF: Mapping[str, tuple[str, ...]] = {"mlx": ("mlx", "gguf", "safetensors")}


def sources_for(card: ModelCard, workers: Sequence[RingWorker]) -> tuple[Source, ...]:
  """Of a card's sources those that some of a machine's workers can run, as far as exo's list knows, best first: what most of
  them can run, in the format that the engine which would run it is made for; full precision where there is nothing else.

  A file that exo pins comes first, wherever there is an engine for it.
  """
  ranked = []
  for source in card.sources:
    form = card.taken_from(source)
    engines = [_engine_for(form, worker) for worker in workers]
    places = [
        worker.engines.index(engine) if engine else _NOBODY for worker, engine in zip(workers, engines, strict=True)
    ]
    first = next((engine for engine in engines if engine is not None), None)
    if first is None:
      continue
    order = _FIRST_OF.get(first.name, _FIRST)
    is_full = form.format == "safetensors" and form.packing in FULL
    key = not isinstance(source, WheelSource), is_full, places.count(_NOBODY), min(places), order.index(form.format)
    ranked.append((key, source))
  return tuple(source for _, source in sorted(ranked, key=lambda item: item[0]))


def _engine_for(form: ModelCard, worker: RingWorker) -> EngineOffer | None:
  profile = profile_of_card(form)
  if profile.facts is None:  # a model of which nobody has said what it is: what engines read of files is known
    container = "gguf" if form.format == "gguf" else "safetensors"
    return next((offer for offer in worker.engines if offer.available and _reads(offer, container)), None)
  return choose(worker.engines, profile.facts, Here(None, profile.size, worker.state.offered_bytes))


def _reads(offer: EngineOffer, container: str) -> bool:
  return not offer.repertoire.containers or container in offer.repertoire.containers


def own_workers(node_id: str, workers: Iterable[Worker]) -> list[RingWorker]:
  """A node's, whatever is loaded on them."""
  return [
      RingWorker(WorkerState(node_id, worker.name, 0, worker.offered_bytes, 0), worker.engines.offers)
      for worker in workers
  ]


class FormChoice:
  """As `sources_for`, for workers that are asked for each time: their engines' order changes when they have been measured. What
  was found out is remembered until then."""
  def __init__(self, workers: Callable[[], Iterable[RingWorker]]) -> None:
    self._workers = workers
    self._known: dict[tuple[object, ...], tuple[Source, ...]] = {}
    self._engines: tuple[object, ...] = ()

  def __call__(self, card: ModelCard) -> tuple[Source, ...]:
    workers = tuple(self._workers())
    engines = tuple((worker.engines, worker.state.offered_bytes) for worker in workers)
    if engines != self._engines:
      self._engines, self._known = engines, {}
    key = card.id, card.source
    found = self._known.get(key)
    if found is None:
      found = self._known[key] = sources_for(card, workers)
    return found
