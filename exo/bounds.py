"""What nodes say of themselves, brought within bounds: names that can be shown, numbers that can be reckoned with."""

from __future__ import annotations

import math

# characters
MAX_NODE_ID, MAX_MODEL_ID, MAX_PLAN_ID, MAX_FINGERPRINT, MAX_REQUEST_ID = 128, 300, 64, 200, 128
MAX_RECORD_ID, MAX_RECORD_WORD = 64, 64
MAX_STAGES = 1024
MAX_WORKERS, MAX_WORKER_NAME = 32, 32
_WORKER_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
MAX_LAYERS = 4096
MAX_CONTEXT, MAX_PARALLEL = 2**24, 256  # that a model can be loaded for: tokens, and requests at once
MAX_PROMPT_TOKENS = 2**20  # of a model whose context is not known


def is_node_id(text: str) -> bool:
  """Letters, digits, '-', '_' and '.': what fits into a line of a log, of a screen, and of a message."""
  return 1 <= len(text) <= MAX_NODE_ID and all(c.isalnum() or c in "-_." for c in text)


def is_worker_name(text: str) -> bool:
  """A few small letters, digits, '-' and '_': the name of a device on its node."""
  return 1 <= len(text) <= MAX_WORKER_NAME and all(c in _WORKER_NAME for c in text)


def real(number: float, most: float) -> float:
  """From 0 to `most`; 0 for what is no number."""
  return min(most, max(0.0, number)) if math.isfinite(number) else 0.0
