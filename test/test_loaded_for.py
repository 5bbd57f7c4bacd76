"""What a model is loaded for (`--context`, `--parallel`), which models stay (`--keep`), and what a node offers by itself."""

from __future__ import annotations

import pytest

from exo.errors import ModelTooLargeError
from exo.topology.fit import Where, fit
from exo.topology.model_size import ModelSize
from exo.topology.placements import load_strategy
from exo.topology.ring_state import ModelNeeds, RingState, WorkerState

MB = 2**20
PLACE = load_strategy("memory")


def needs(kv_tokens: int) -> ModelNeeds:
  """Eight layers of 10 MB, each with 4 kB of KV a token."""
  return ModelNeeds("m", ModelSize((10 * MB, ) * 8, 0, 0, 4096), kv_tokens)


def ring(*usable_mb: int) -> RingState:
  return RingState(tuple(WorkerState(f"n{i}", "", 1, mb * MB, mb * MB, alone=True) for i, mb in enumerate(usable_mb)))


# 80 MB of weights, and 32 MB for 1024 tokens of KV
@pytest.mark.parametrize(("kv_tokens", "usable_mb", "where", "missing_mb"), [
    (1024, 112, Where.HERE, 0),
    (4096, 112, Where.NOWHERE, 96),
    (4096, 208, Where.HERE, 0),
])
def test_line_4_the_kv_that_is_asked_for_decides_whether_a_model_fits(
    kv_tokens: int, usable_mb: int, where: Where, missing_mb: int
) -> None:
  found = fit(needs(kv_tokens), ring(usable_mb), "n0", PLACE)
  assert (found.where, found.missing_mb) == (where, missing_mb)
  if found.runs:
    assert found.max_context == kv_tokens
  else:
    with pytest.raises(ModelTooLargeError, match="96 MB are missing"):
      PLACE(needs(kv_tokens), ring(usable_mb))
