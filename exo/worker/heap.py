"""Python's own garbage after a load: looked for at once, and not again in what a model keeps."""

from __future__ import annotations

import gc
import time

_MOST_SHARE = 0.1  # of the time, since nothing else in the process runs meanwhile

_next_at = 0.0


def tidy() -> None:
  """Vocabularies and graphs stay: collections during generation need not look at them again, but this one does, or what ended
  since the load before would stay, too. Where one load follows the other, most of them go without.
  """
  global _next_at
  if (began := time.monotonic()) < _next_at:
    return
  gc.unfreeze()
  gc.collect()
  gc.freeze()
  ended = time.monotonic()
  _next_at = ended + (ended - began) / _MOST_SHARE
