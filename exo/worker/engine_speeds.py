"""What engines were measured to do on this machine's devices, kept on disk, and measured anew where nothing is known.

A figure decides about the models that are loaded after all engines of a device have been measured; see `WorkerEngines.settle`.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from exo.child_process import ChildProcess
from exo.errors import in_words
from exo.inference.offer import EngineOffer, EngineSpeed, in_order
from exo.log import log
from exo.private_files import write_private
from exo.worker.quiet import quiet
from exo.worker.worker import Worker

MEASURING_MB = 1500  # what a node must offer, for an engine to be measured beside it
_FILE = "engine_speeds.json"
_QUIET_S, _POLL_S = 45.0, 1.0
_MEASURE_S = 180.0  # compilers included
_MOST_BYTES = 2**20


class EngineSpeeds:
  """`chip` tells machines that share a folder apart; `quantize` and `threads` are what models are loaded with."""
  def __init__(self, state_dir: Path, chip: str, threads: int, quantize: str | None) -> None:
    self._file, self._chip, self._threads, self._quantize = state_dir / _FILE, chip, threads, quantize

  def _key(self, device: str, offer: EngineOffer) -> str:
    held = f", weights in {self._quantize} bits" if self._quantize else ""
    return f"{offer.name} {offer.version} on {device} ({offer.device}), {self._chip}, {self._threads} threads{held}"

  def _read(self) -> dict[str, EngineSpeed]:
    """Nothing where there is no file, and of what somebody else may have written there only what is plausible."""
    try:
      if self._file.stat().st_size > _MOST_BYTES:
        return {}
      found = json.loads(self._file.read_text("utf-8"))
      known = {str(key): EngineSpeed(float(value[0]), float(value[1])) for key, value in found.items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
      return {}
    return {key: s for key, s in known.items() if all(math.isfinite(n) and 0 < n < 1e9 for n in (s.prompt, s.decode))}

  def known(self, device: str, offers: Sequence[EngineOffer]) -> dict[str, EngineSpeed]:
    """What engines of a worker were measured to do on its device, by name."""
    known = self._read()
    return {offer.name: known[key] for offer in offers if (key := self._key(device, offer)) in known}

  def ordered(self, device: str, offers: Sequence[EngineOffer]) -> tuple[EngineOffer, ...]:
    """The engines of a worker with what is known of them on its device, in the order of choice."""
    known = self.known(device, offers)
    return in_order(replace(offer, speed=known.get(offer.name)) for offer in offers)

  def unknown(self, device: str, offers: Sequence[EngineOffer]) -> list[EngineOffer]:
    """Those that are to be measured: where there is a choice at all, all that can run and have no figure."""
    candidates = [offer for offer in offers if not (offer.missing or offer.rank < 0 or offer.preferred)]
    known = self.known(device, candidates)
    return [offer for offer in candidates if offer.name not in known] if len(candidates) > 1 else []

  def keep(self, device: str, measured: Mapping[EngineOffer, EngineSpeed]) -> None:
    """Beside what other nodes of this machine have kept. Raises `OSError`."""
    known = {key: [speed.prompt, speed.decode] for key, speed in self._read().items()}
    known |= {self._key(device, offer): [speed.prompt, speed.decode] for offer, speed in measured.items()}
    write_private(self._file, json.dumps(known, indent=1))

  async def learn(self, workers: Sequence[Worker], busy: Callable[[], bool]) -> None:
    """Measure what is unknown of each worker's engines, one after the other, while nobody wants a device, and tell the worker;
    a task of its own.

    As soon as somebody wants one, the measurement ends, and is made again when the node has been quiet for a while.
    """
    for worker in workers:
      device, offers = worker.name, worker.engines.offers
      measured: dict[EngineOffer, EngineSpeed] = {}
      for offer in await asyncio.to_thread(self.unknown, device, offers):
        try:
          speed = await self._measured(device, offer, busy)
        except Exception as error:  # noqa: BLE001 - whatever it is, this engine has no figure
          log(1, "the speed of %s could not be measured: %s", offer.name, in_words(error))
          continue
        log(
            1, "%s: %.0f tokens/s of a prompt, %.1f decoded, with a small model", offer.name, speed.prompt, speed.decode
        )
        measured[offer] = speed
      if measured:
        try:
          await asyncio.to_thread(self.keep, device, measured)
        except OSError as error:
          log(0, "what engines were measured to do cannot be kept: %s", in_words(error))
      found = {offer.name: speed for offer, speed in measured.items()}
      # another node of this machine may have measured some meanwhile
      await worker.learn(await asyncio.to_thread(self.known, device, offers) | found)

  async def _measured(self, device: str, offer: EngineOffer, busy: Callable[[], bool]) -> EngineSpeed:
    """Raises what the engine raises, and `TimeoutError`."""
    while True:
      await quiet(busy, _QUIET_S)
      child = ChildProcess("exo.worker.speed_probe", f"measuring {offer.name}")
      answer = asyncio.wrap_future(child.call("measure", offer.name, self._threads, self._quantize, device))
      try:
        async with asyncio.timeout(_MEASURE_S):
          while not answer.done() and not busy():
            await asyncio.wait([answer], timeout=_POLL_S)
        if answer.done():
          return EngineSpeed(*answer.result())
      finally:
        answer.cancel()  # nobody waits for it any more, nor for the news that its process is gone
        child.kill()
