"""Hashes of a file's blocks that exo carries itself, so that parts of it can be checked wherever they come from.

`pinned/SHA256.blocks` holds, for the file with that hash, the first 16 bytes of the SHA-256 of each of its blocks (as
`block_map.py` divides it). `scripts/pin_blocks.py FILE` writes one. Half of a SHA-256 is as hard to forge on purpose as a
128-bit key is to guess, and half as large.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from exo.download.manifest import RepoFile
from exo.inference.weights.block_map import block_bytes

PINNED_BYTES = 16
FOLDER = Path(__file__).parent / "pinned"


@cache
def _pinned(sha256: str, size: int) -> bytes | None:
  try:
    found = (FOLDER / f"{sha256}.blocks").read_bytes()
  except OSError:
    return None
  return found if len(found) == -(-size // block_bytes(size)) * PINNED_BYTES else None


def pinned_blocks(file: RepoFile) -> bytes | None:
  """`PINNED_BYTES` for each block of the file; None where exo carries none. Blocks."""
  return _pinned(file.sha256, file.size) if file.sha256 is not None and file.size else None


def shortened(digests: bytes) -> bytes:
  """SHA-256s one after the other, each cut to `PINNED_BYTES`."""
  return np.frombuffer(digests, np.uint8).reshape(-1, 32)[:, :PINNED_BYTES].tobytes()
