"""Random changes to inputs that are right, for runs without a coverage-guided fuzzer."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

_NUMBERS = (b"0", b"-1", b"1", b"255", b"65536", b"2147483648", b"18446744073709551616", b"-9223372036854775809", b"1e309",
            b"NaN", b"0.5", b"null", b"true", b'""', b"[]", b"{}", b'"\\ud800"', b"\xff", b"\x00")  # yapf: disable
_WORDS = tuple(n.to_bytes(8, "little") for n in (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))


def mutate(data: bytes, others: list[bytes], random: Random, max_bytes: int) -> bytes:
  """One to eight changes: bits, bytes, words, numbers, parts removed, doubled, moved or taken from another input."""
  out = bytearray(data)
  for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
    at = random.randrange(len(out) + 1)
    end = min(len(out), at + random.choice((1, 2, 4, 8, 32, 256)))
    match random.randrange(9):
      case 0 if at < len(out):
        out[at] ^= 1 << random.randrange(8)
      case 1 if at < len(out):
        out[at] = random.randrange(256)
      case 2:
        out[at:end] = b""
      case 3:
        out[at:at] = out[at:end] * random.choice((1, 2, 20))
      case 4:
        out[at:min(len(out), at + 8)] = random.choice(_WORDS)
      case 5:
        out[at:end] = random.choice(_NUMBERS)
      case 6:
        other = random.choice(others)
        start = random.randrange(len(other) + 1)
        out[at:end] = other[start:start + random.choice((4, 16, 64, 512))]
      case 7:
        del out[at:]
      case _:
        out[at:at] = bytes(random.randrange(256) for _ in range(random.choice((1, 3, 9))))
  return bytes(out[:max_bytes])


def inputs(seeds: list[bytes], count: int, seed: int, max_bytes: int) -> Iterator[bytes]:
  """The seeds themselves, then `count` mutations of them and of each other, the same for the same `seed`."""
  random, pool = Random(seed), list(seeds)
  yield from seeds
  for _ in range(count):
    changed = mutate(random.choice(pool), pool, random, max_bytes)
    if len(pool) < 200 and random.random() < 0.02:
      pool.append(changed)
    yield changed
