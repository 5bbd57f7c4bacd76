"""How keys and values are kept by an engine that can pack them: what `--kv-type` says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from exo.errors import ConfigError

# bytes of one number, by GGML's blocks
_BYTES = {"f32": Fraction(4), "f16": Fraction(2), "q8_0": Fraction(34, 32), "q4_0": Fraction(18, 32)}
KV_TYPES = tuple(_BYTES)
_BLOCK = 32


@dataclass(frozen=True, slots=True)
class KvType:
  """`flash`: attention that never has all scores of a prompt at once; it alone can read values that are packed."""
  k: str = "f16"
  v: str = "f16"
  flash: bool = False

  @classmethod
  def parse(cls, text: str) -> KvType:
    """Of `K[:V]`. Raises `ConfigError`."""
    k, _, v = text.partition(":")
    v = v or k
    if not {k, v} <= set(KV_TYPES):
      raise ConfigError(f"--kv-type {text}: keys and values are each one of {', '.join(KV_TYPES)}, such as q8_0:f16")
    return cls(k, v, bool({k, v} & {"q8_0", "q4_0"}))

  @classmethod
  def choose(cls, wanted: str | None, head_dims: Iterable[int]) -> KvType:
    """What is asked for, else the kind in which a token's numbers depend neither on how many threads compute nor on who else does: it
    packs keys, where those of every head fill whole blocks. The same on every node. Raises `ConfigError`."""
    odd = [dim for dim in head_dims if dim % _BLOCK]
    if wanted is None:
      return cls() if odd else cls("q8_0", "f16", True)
    found = cls.parse(wanted)
    if found.flash and odd:
      raise ConfigError(f"--kv-type {wanted}: heads of {odd[0]} numbers, as this model has, fill no blocks of {_BLOCK}")
    return found

  @property
  def element_bytes(self) -> float:
    """Of a number, on average over keys and values."""
    return float((_BYTES[self.k] + _BYTES[self.v]) / 2)
