"""The embedding on the host: rows read from the file as tokens come, for engines whose first layer is fed with numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exo.inference.engine import TokenIds
from exo.inference.weights.checkpoint import EMBEDDING
from exo.inference.weights.tensor import Floats
from exo.topology.weight_memory import EMBEDDING_PAGES

if TYPE_CHECKING:
  from exo.inference.weights.stage_tensors import StageTensors

# a row brings the pages around it along, which stay mapped: 64 kB under Linux
_ROWS_BETWEEN = EMBEDDING_PAGES >> 16


class EmbeddingTable:
  """Takes no memory of the process's own: the page cache holds what is used, of which no more than `EMBEDDING_PAGES` stay mapped."""
  def __init__(self, tensors: StageTensors) -> None:
    self._let_go, self._rows_read = tensors.let_go, 0
    self._stored = tensors.tensor(EMBEDDING)
    self._stored.rows(slice(0, 1)).to_float32()  # raises here, not in somebody's step, where it cannot be read
    self._scale = np.float32(tensors.config.embedding_scale)
    self.n_words = self._stored.shape[0]

  def __call__(self, token_ids: TokenIds) -> Floats:
    """(tokens, hidden size), as the first layer wants them."""
    values = self._stored.rows(token_ids).to_float32()
    self._rows_read += len(token_ids)
    if self._rows_read >= _ROWS_BETWEEN:
      self._let_go()
      self._rows_read = 0
    return values if self._scale == 1 else values * self._scale
