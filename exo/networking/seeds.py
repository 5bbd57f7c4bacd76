"""Nodes known by address alone, beside whatever discovery finds: from `--peers` and from `exo join`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from exo.errors import ConfigError
from exo.networking.discovery import Discovery
from exo.networking.mesh import PeerCandidate
from exo.networking.peer_messages import Hello
from exo.tasks import TaskOwner

_OFFER_S = 5.0
_MAX_SEEDS = 64


def parse_seed(text: str) -> tuple[str, int]:
  """"host:port" or "[IPv6]:port". Raises `ConfigError`."""
  host, colon, port = text.strip().rpartition(":")
  if not colon or not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
    raise ConfigError(f"{text!r} is not an address of a node: it should be like 192.168.1.10:50051")
  return host.strip("[]"), int(port)


def seeds_file(state_dir: Path) -> Path:
  """Where `exo join` keeps the addresses that its token named, one a line."""
  return state_dir / "seeds"


def read_seeds(state_dir: Path) -> tuple[str, ...]:
  try:
    return tuple(line for line in seeds_file(state_dir).read_text().split() if line)[:_MAX_SEEDS]
  except (OSError, UnicodeDecodeError):
    return ()


class SeededDiscovery(Discovery):
  """`inner`, and these addresses again and again."""
  def __init__(self, inner: Discovery, seeds: tuple[str, ...]) -> None:
    self._inner = inner
    self._seeds = [parse_seed(seed) for seed in seeds]
    self._tasks = TaskOwner("seeds")

  async def start(self, local: Hello, offer: Callable[[PeerCandidate], None]) -> None:
    await self._inner.start(local, offer)
    self._tasks.spawn(self._offer_all(offer), "offers")

  def refusals(self) -> Sequence[str]:
    return self._inner.refusals()

  def problems(self) -> Sequence[str]:
    return self._inner.problems()

  async def stop(self) -> None:
    await self._tasks.close()
    await self._inner.stop()

  async def _offer_all(self, offer: Callable[[PeerCandidate], None]) -> None:
    while True:
      for host, port in self._seeds:
        offer(PeerCandidate("", host, port, interface="seed", configured=True))
      await asyncio.sleep(_OFFER_S)
