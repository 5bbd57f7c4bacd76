"""Which blocks of a sparse weight file are there, and the SHA-256 of each.

A file of n bytes is divided into blocks whose size depends on n alone, so every node divides it alike. Its map lies
beside it in `.exo/<name>.blocks`: a header and 32 bytes for each block, zero for one that is missing. It is mapped into
memory: readers see at once what a download adds.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from exo.errors import ModelFilesError
from exo.file_calls import write_whole
from exo.log import log

Span = tuple[int, int]  # bytes [start, end) of a file

_MAGIC = b"exo-blk1"
# magic, file bytes, block bytes, time of the last change whose blocks are on disk for sure (0: none), verified whole, and
# a hash of what tells this version of the file from others
_HEADER = struct.Struct("<8sQQQQ32s")
_DIGEST_BYTES = 32
_MIN_BLOCK_BYTES, _MAX_BLOCK_BYTES = 1 << 10, 1 << 22
_BLOCKS_WANTED = 8192
MAX_FILE_BYTES = 1 << 42


def block_bytes(file_bytes: int) -> int:
  """A power of two that gives about 8192 blocks: fine enough that whole blocks cost a shard less than 5 % more."""
  wanted = 1 << max(0, (file_bytes // _BLOCKS_WANTED).bit_length())
  return min(max(wanted, _MIN_BLOCK_BYTES), _MAX_BLOCK_BYTES)


def merged(spans: Iterable[Span]) -> list[Span]:
  """The same bytes as sorted spans that neither touch nor overlap."""
  out: list[Span] = []
  for start, end in sorted(span for span in spans if span[0] < span[1]):
    if out and start <= out[-1][1]:
      out[-1] = (out[-1][0], max(out[-1][1], end))
    else:
      out.append((start, end))
  return out


def span_bytes(spans: Iterable[Span]) -> int:
  """The length of spans that do not overlap."""
  return sum(end - start for start, end in spans)


def digests_of(data: bytes | memoryview, block: int) -> bytes:
  """The SHA-256 of each block of `data`, which begins at a block's beginning, one after the other."""
  view = memoryview(data)
  return b"".join(hashlib.sha256(view[at:at + block]).digest() for at in range(0, len(view), block))


def identity_hash(identity: str) -> bytes:
  return hashlib.sha256(identity.encode()).digest()


def map_path(file: Path) -> Path:
  return file.parent / ".exo" / f"{file.name}.blocks"


def _opened(path: Path, writable: bool) -> tuple[npt.NDArray[np.uint8], bool]:
  """(the bytes of a map, whether they are mapped rather than a copy). Raises `ModelFilesError`."""
  try:
    with path.open("r+b" if writable else "rb") as file:
      try:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=access), np.uint8), True
      except OSError as error:
        log(2, "%s cannot be mapped (%s): it is read and written instead", path.name, error.strerror)
      return np.frombuffer(bytearray(file.read()), np.uint8), False
  except (OSError, ValueError) as error:  # the latter is an empty file's
    raise ModelFilesError(f"{path.name} cannot be read: {error}") from error


class BlockMap:
  """The map of one file. Marks are atomic for readers of the same machine; writers hold the model's lock."""
  def __init__(self, path: Path, *, writable: bool) -> None:
    """Raises `ModelFilesError` for a file that is no map."""
    self.path = path
    self._raw, self._is_mapped = _opened(path, writable)
    if self._raw.size < _HEADER.size:
      raise ModelFilesError(f"{path.name} is no map of blocks")
    magic, self.file_bytes, self.block, _, _, self.identity = _HEADER.unpack_from(memoryview(self._raw))
    if magic != _MAGIC or not 0 < self.file_bytes <= MAX_FILE_BYTES or self.block != block_bytes(self.file_bytes):
      raise ModelFilesError(f"{path.name} is no map of blocks")
    self.count = -(-self.file_bytes // self.block)
    if self._raw.size != _HEADER.size + self.count * _DIGEST_BYTES:
      raise ModelFilesError(f"{path.name} is cut off")
    self._digests = self._raw[_HEADER.size:].reshape(self.count, _DIGEST_BYTES)
    self._rereads = not self._is_mapped and not writable

  def _refresh(self) -> None:
    """Where the file system maps no files, what others have added since is read anew."""
    if self._rereads:
      with contextlib.suppress(OSError):
        data = self.path.read_bytes()
        if len(data) == self._raw.size:
          self._raw[:] = np.frombuffer(data, np.uint8)

  def _store(self, start: int, end: int) -> None:
    """Bytes [start, end) of the map have changed."""
    if not self._is_mapped:
      with self.path.open("r+b") as file:
        file.seek(start)
        file.write(self._raw[start:end].tobytes())

  @classmethod
  def create(cls, path: Path, file_bytes: int, identity: str = "") -> BlockMap:
    """An empty map, written anew; `identity` is anything that tells versions of the file apart."""
    block = block_bytes(file_bytes)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    count = -(-file_bytes // block)
    header = _HEADER.pack(_MAGIC, file_bytes, block, 0, 0, identity_hash(identity))
    write_whole(path, header + bytes(count * _DIGEST_BYTES))
    return cls(path, writable=True)

  @classmethod
  def beside(cls, file: Path) -> BlockMap | None:
    """The map of a file, to read; None for a file that has none and hence is whole."""
    path = map_path(file)
    return cls(path, writable=False) if path.is_file() else None

  # what is there

  def present(self) -> npt.NDArray[np.bool_]:
    """By block."""
    self._refresh()
    found: npt.NDArray[np.bool_] = self._digests.any(axis=1)
    return found

  @property
  def is_whole(self) -> bool:
    return bool(self.present().all())

  def blocks_of(self, start: int, end: int) -> range:
    """The blocks that bytes [start, end) lie in."""
    if not 0 <= start <= end <= self.file_bytes:
      raise ValueError(f"bytes {start}..{end} of a file of {self.file_bytes}")
    return range(start // self.block, -(-end // self.block) if end > start else start // self.block)

  def has(self, start: int, end: int) -> bool:
    blocks = self.blocks_of(start, end)
    wanted = self._digests[blocks.start:blocks.stop]
    if not wanted.any(axis=1).all():
      self._refresh()
    return bool(wanted.any(axis=1).all())

  def held(self) -> list[Span]:
    """What is there, as spans of whole blocks (the last block ends with the file)."""
    return list(self._runs(self.present()))

  def missing(self, spans: Iterable[Span]) -> list[Span]:
    """The blocks that these spans touch and that are not there, as spans."""
    wanted = np.zeros(self.count, bool)
    for start, end in spans:
      blocks = self.blocks_of(start, end)
      wanted[blocks.start:blocks.stop] = True
    return list(self._runs(wanted & ~self.present()))

  def _runs(self, flags: npt.NDArray[np.bool_]) -> Iterator[Span]:
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    for first, last in edges.reshape(-1, 2).tolist():
      yield first * self.block, min(last * self.block, self.file_bytes)

  def digests(self, start: int, end: int) -> bytes:
    """Those of the blocks of [start, end), which begins at a block; zeros for missing ones."""
    self._refresh()
    blocks = self.blocks_of(start, end)
    return self._digests[blocks.start:blocks.stop].tobytes()

  # changes

  def mark(self, start: int, digests: bytes) -> None:
    """The blocks from `start` on are on disk with these digests."""
    if start % self.block or len(digests) % _DIGEST_BYTES:
      raise ValueError("a mark must be of whole blocks")
    new = np.frombuffer(digests, np.uint8).reshape(-1, _DIGEST_BYTES)
    first = start // self.block
    self._digests[first:first + len(new)] = new
    self._store(_HEADER.size + first * _DIGEST_BYTES, _HEADER.size + (first + len(new)) * _DIGEST_BYTES)

  def clear(self, spans: Iterable[Span]) -> None:
    for start, end in spans:
      blocks = self.blocks_of(start, end)
      self._digests[blocks.start:blocks.stop] = 0
      self._store(_HEADER.size + blocks.start * _DIGEST_BYTES, _HEADER.size + blocks.stop * _DIGEST_BYTES)

  # trust

  @property
  def synced_ns(self) -> int:
    """The file's modification time when all marked blocks were known to be on disk; 0 while that is not so."""
    self._refresh()
    return int.from_bytes(self._raw[24:32].tobytes(), "little")

  @property
  def verified(self) -> bool:
    """The whole file has been found to have the hash that its repository tells."""
    self._refresh()
    return bool(self._raw[32])

  def stamp(self, synced_ns: int, *, verified: bool) -> None:
    self._raw[24:32] = np.frombuffer(synced_ns.to_bytes(8, "little"), np.uint8)
    self._raw[32] = verified
    self._store(24, 33)
