"""Questions about what nodes keep for their clients: stored responses and conversations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MAX_RECORD_BYTES = 6 * 2**20
MAX_RECORD_JSON = 24 * 2**20  # unpacked: what a node reads without keeping others waiting
MAX_SENT_BYTES = MAX_RECORD_BYTES + 4096  # with ids and hashes

Outcome = Literal["done", "changed", "none", "failed"]


@dataclass(frozen=True, slots=True)
class FindRecord:
  """Do you keep this? `proof` follows from its id and the hash of its owner's API key, and is of no use for another one."""
  record_id: str
  proof: str


@dataclass(frozen=True, slots=True)
class RecordFound:
  """Empty where there is none, or none of that owner's; else a `Record`, sealed such that its owner alone reads it."""
  sealed: bytes = b""


@dataclass(frozen=True, slots=True)
class ChangeRecord:
  """Exchange what you keep, or forget it; `sealed` is a `RecordChange`, as only its owner can have made it."""
  record_id: str
  proof: str
  sealed: bytes


@dataclass(frozen=True, slots=True)
class RecordChanged:
  """`changed`: it had another version by then; `failed`: the disk did not take it."""
  outcome: Outcome
