"""Parts of files checked against the hub: some blocks of each giver, chosen by chance, are fetched there too and compared.

What is found depends on how much is false. Of a neighbour that falsifies one block in five, 97 of 100 are caught with the
first 16 blocks; one that changes a single block of thousands mostly is not, until the file is whole.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from exo.download.disk_threads import in_thread
from exo.download.doubts import Doubts
from exo.download.hub_fetch import HubFetcher
from exo.download.manifest import Manifest
from exo.download.sparse_file import SparseFile
from exo.inference.weights.block_map import digests_of

SAMPLES, _ENOUGH_BYTES, _LEAST = 16, 1 << 24, 4  # blocks of each giver in one check; fewer, but so many, of large blocks

_random = secrets.SystemRandom()  # no giver must be able to guess which


@dataclass(frozen=True, slots=True)
class _Sample:
  giver: str
  target: SparseFile
  start: int
  end: int


async def false_givers(hub: HubFetcher, manifest: Manifest, doubts: Doubts, files: Mapping[str,
                                                                                           SparseFile]) -> set[str]:
  """The nodes of whose blocks one is not what the hub has there. Each file in doubt must be among `files`.

  Raises as `HubFetcher.fetch` does.
  """
  samples = [sample for giver in doubts.givers for sample in _samples(giver, doubts, files)]

  async def from_hub(sample: _Sample) -> bytes:
    found: list[bytes] = []

    async def sink(at: int, data: bytes) -> None:
      found.append(data)

    block = sample.target.map.block
    await hub.fetch(manifest, sample.target.file, sample.start, sample.end, block, sink)
    return await in_thread(digests_of, b"".join(found), block)

  async def is_false(sample: _Sample) -> bool:
    """Asked twice before somebody is called a liar: a connection may have garbled it."""
    here = sample.target.map.digests(sample.start, sample.end)
    return await from_hub(sample) != here and await from_hub(sample) != here

  answers = await asyncio.gather(*(is_false(sample) for sample in samples), return_exceptions=True)
  caught = {sample.giver for sample, answer in zip(samples, answers, strict=True) if answer is True}
  failed = next((answer for answer in answers if isinstance(answer, BaseException)), None)
  if failed is not None and not caught:
    raise failed
  return caught


def _samples(giver: str, doubts: Doubts, files: Mapping[str, SparseFile]) -> list[_Sample]:
  blocks: list[tuple[SparseFile, int]] = []
  largest = 1
  for name in doubts.files:
    target = files[name]
    for start, end in doubts.of(name).get(giver, ()):
      largest = max(largest, target.map.block)
      there = target.map.present()[target.map.blocks_of(start, end).start:target.map.blocks_of(start, end).stop]
      blocks += [(target, at) for at, is_there in zip(range(start, end, target.map.block), there, strict=True)
                 if is_there]
  count = min(SAMPLES, max(_ENOUGH_BYTES // largest, _LEAST), len(blocks))
  chosen = _random.sample(blocks, count)
  return [_Sample(giver, target, at, min(at + target.map.block, target.file.size)) for target, at in chosen]
