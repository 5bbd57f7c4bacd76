"""Questions about what nodes keep for their clients: stored responses and conversations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MAX_RECORD_BYTES = 6 * 2**20  # such that one fits into a message of the control stream

Outcome = Literal["done", "changed", "none", "failed"]


@dataclass(frozen=True, slots=True)
class FindRecord:
  """Do you keep this? `proof` follows from its id and the hash of its owner's API key, and is of no use for another one."""
  record_id: str
  proof: str


@dataclass(frozen=True, slots=True)
class RecordFound:
  """Empty where there is none, or none of that owner's; else a `Record` as it is on the disk."""
  record: bytes = b""


@dataclass(frozen=True, slots=True)
class ChangeRecord:
  """Put `record` in the place of what you keep, if that is still the version `tag`; forget it where `record` is empty."""
  record_id: str
  proof: str
  tag: str
  record: bytes = b""


@dataclass(frozen=True, slots=True)
class RecordChanged:
  """`changed`: it had another version by then; `failed`: the disk did not take it."""
  outcome: Outcome
