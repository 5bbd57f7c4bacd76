"""The map of a sparse file: whatever is written in whatever order, it tells exactly what is there."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.download.manifest import RepoFile
from exo.download.sparse_file import SparseFile, held_spans
from exo.errors import ModelFilesError
from exo.inference.weights.block_map import BlockMap, block_bytes, digests_of, map_path, merged, span_bytes


@st.composite
def _file_and_spans(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
  size = draw(st.integers(1, 40_000))
  span = st.tuples(st.integers(0, size), st.integers(0, size)).map(lambda ends: (min(ends), max(ends)))
  return size, draw(st.lists(span, max_size=12)), draw(st.lists(span, max_size=12))


@settings(max_examples=150, deadline=None)
@given(_file_and_spans())
def test_any_order_of_spans_fetches_every_byte_once_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[int, list[tuple[int, int]], list[tuple[int, int]]]
) -> None:
  """Against a plain set of bytes: what is missing is exactly the wanted blocks less those that came before."""
  size, first, second = case
  content = random.Random(size).randbytes(size)
  path = tmp_path_factory.mktemp("map") / "model.safetensors"
  file = RepoFile(path.name, size)
  block = block_bytes(size)
  have: set[int] = set()
  fetched = 0
  for wanted in (first, second):
    blocks = {b for start, end in wanted if start < end for b in range(start // block, -(-end // block))}
    sparse = SparseFile(path, file, "v1")  # opened anew each time, as by another process
    missing = sparse.missing(wanted)
    assert {b for start, end in missing for b in range(start // block, -(-end // block))} == blocks - have
    assert missing == merged(missing)
    for start, end in missing:
      sparse.write(start, content[start:end])
      fetched += end - start
    assert sparse.missing(wanted) == []
    sparse.sync()
    sparse.close()
    have |= blocks
    blocks_map = BlockMap.beside(path)
    assert blocks_map is not None and path.stat().st_size == size
    assert span_bytes(blocks_map.held()) == fetched == sum(min(block, size - b * block) for b in have)
    assert blocks_map.is_whole == (len(have) == blocks_map.count)
    data = path.read_bytes()
    for start, end in blocks_map.held():
      assert data[start:end] == content[start:end] and blocks_map.has(start, end)
      assert blocks_map.digests(start, end) == digests_of(content[start:end], block)


def test_blocks_cost_a_shard_less_than_five_per_cent() -> None:
  """A layer's span grows by less than a block at each end; real layers are much longer than blocks."""
  for size, layer in ((270 * 10**6, 7 * 10**6), (5 * 10**9, 218 * 10**6), (40 * 10**9, 500 * 10**6)):
    assert 2 * block_bytes(size) < 0.05 * layer
  assert block_bytes(1) == 1024 and block_bytes(1 << 42) == 1 << 22


def test_a_crash_leaves_nothing_that_is_trusted_without_a_look(tmp_path: Path) -> None:
  path = tmp_path / "model.gguf"
  file, content = RepoFile(path.name, 10_000), random.Random(1).randbytes(10_000)
  sparse = SparseFile(path, file, "v1")
  sparse.write(0, content[:4096])
  sparse.write(8192, content[8192:])
  sparse.close()  # without sync, as when the process is killed
  data = bytearray(path.read_bytes())
  data[1500] ^= 1  # and the power went too: one block never reached the disk
  path.write_bytes(data)
  again = SparseFile(path, file, "v1")
  assert held_spans(path) == [(0, 1024), (2048, 4096), (8192, 10_000)]
  again.close()


def test_another_version_of_a_file_starts_anew(tmp_path: Path) -> None:
  path = tmp_path / "model.gguf"
  file = RepoFile(path.name, 3000)
  sparse = SparseFile(path, file, "v1")
  sparse.write(0, bytes(3000))
  sparse.sync()
  sparse.close()
  other = SparseFile(path, file, "v2")
  assert other.missing([(0, 3000)]) == [(0, 3000)]
  other.close()


def test_a_damaged_map_is_an_error_that_names_it(tmp_path: Path) -> None:
  path = tmp_path / "model.gguf"
  map_path(path).parent.mkdir()
  for content in (b"", b"nonsense", b"exo-blk1" + bytes(100)):
    map_path(path).write_bytes(content)
    with pytest.raises(ModelFilesError, match=r"model\.gguf\.blocks"):
      BlockMap.beside(path)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40_000), st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_the_hash_of_a_file_follows_it_in_any_order_and_tells_a_wrong_byte(
    tmp_path_factory: pytest.TempPathFactory, size: int, draw: random.Random, as_git: bool, reopened: bool
) -> None:
  content = draw.randbytes(size)
  git = hashlib.sha1(b"blob %d\0" % size + content).hexdigest()
  hashes = {"git_oid": git} if as_git else {"sha256": hashlib.sha256(content).hexdigest()}
  path = tmp_path_factory.mktemp("hash") / "model.safetensors"
  file, block = RepoFile(path.name, size, **hashes), block_bytes(size)
  sparse = SparseFile(path, file, "v1")
  wrong = bytearray(content)
  wrong[draw.randrange(size)] ^= 1
  for attempt, right in ((bytes(wrong), False), (content, True)):
    starts = list(range(0, size, block))
    draw.shuffle(starts)
    for k, start in enumerate(starts):
      sparse.write(start, attempt[start:start + block])
      if reopened and k == len(starts) // 2:  # as after an interruption
        sparse.sync()
        sparse.close()
        sparse = SparseFile(path, file, "v1")
    assert sparse.is_whole and sparse.verify() is right
    if not right:
      sparse.forget()
  sparse.close()
