"""In how many bits weights are held that are floats in their files: what `--quantize` says, and what an engine has."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from exo.errors import ConfigError


class Quantize(StrEnum):
  """A value of `--quantize`."""
  NONE = "none"
  EIGHT = "8"
  FOUR = "4"

  @property
  def bits(self) -> int | None:
    """None for weights that stay floats."""
    return None if self is Quantize.NONE else int(self)


def choose_quantize(engine: str, has: Sequence[Quantize], wanted: str | None) -> Quantize:
  """What an engine makes of `wanted`: one of those that it `has`, the first of them where nothing is said.

  Raises `ConfigError` for anything else.
  """
  if wanted is None:
    return has[0]
  if wanted not in has:
    raise ConfigError(f"the {engine} engine has no --quantize {wanted}: choose {', '.join(has)}")
  return Quantize(wanted)
