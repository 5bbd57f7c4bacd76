"""Which devices of this machine become workers of a node, what each of them offers, and which engines it has."""

from __future__ import annotations

from collections.abc import Sequence

from exo.bounds import MAX_WORKERS
from exo.errors import ConfigError
from exo.inference.offer import EngineOffer
from exo.system_figures import memory
from exo.topology.device_capabilities import gpu_memories_mb

_MB, _GPU = 2**20, "gpu"


def engines_by_device(offers: Sequence[EngineOffer], wanted: Sequence[str]) -> dict[str, tuple[EngineOffer, ...]]:
  """For each device that is a worker the engines that can use it, in the order of choice: for those that were asked for by name,
  or for what this machine has.

  Raises `ConfigError` for a device that no engine can use.
  """
  if not wanted:
    return _of_machine(offers)
  found = {name: tuple(offer for offer in offers if name in offer.devices or offer.any_device) for name in wanted}
  for name, engines in found.items():
    if not any(engine.available for engine in engines):
      usable = sorted({device for offer in offers if offer.available for device in offer.devices})
      raise ConfigError(f"--devices {name}: no engine can use it here (there is {', '.join(usable)})")
  return found


def _of_machine(offers: Sequence[EngineOffer]) -> dict[str, tuple[EngineOffer, ...]]:
  """Each GPU that an engine can use, or else the best device that there is.

  The CPU beside a GPU gets no layers by itself: they are divided by memory, and every token would wait for it. What no engine of
  the GPUs can run is run by the CPU's engines all the same, which the first worker has.
  """
  usable = dict.fromkeys(device for offer in offers if offer.available for device in offer.devices)
  first, *others = [device for device in usable if device.startswith(_GPU)][:MAX_WORKERS] or [offers[0].devices[0]]
  return {first: tuple(offers)} | {name: tuple(o for o in offers if name in o.devices) for name in others}


def offers_mb(devices: Sequence[str], max_memory_mb: int | None) -> list[int]:
  """What each device offers to the ring: all that it has, or its part of what the user allows all of them together.

  Devices without memory of their own, or whose driver does not tell, share the system's evenly. Blocks for up to a few seconds.
  """
  own = gpu_memories_mb()
  gpus = {name: mb for i, mb in enumerate(own) if (name := f"gpu{i}") in devices}
  sharing = max(1, len(devices) - len(gpus))
  has = [gpus.get(name, memory().total // _MB // sharing) for name in devices]
  total = sum(has)
  if max_memory_mb is None or (0 < total <= max_memory_mb):
    return has
  if not total:
    return [max_memory_mb // len(devices)] * len(devices)
  return [max_memory_mb * part // total for part in has]
