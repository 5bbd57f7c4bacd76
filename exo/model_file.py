"""Which files a plan runs: what tells a model's weights from others that bear the same name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

_KEY = 16


@dataclass(frozen=True, slots=True)
class ModelFile:
  """The files of one model as one node holds them, for all stages, replicas and failovers of a plan.

  `headers` is a hash of the configuration and of all tensors' names and sizes; `hashes` one of the weight files' own hashes, as
  a hub or exo itself tells them, "" where nobody does; `sample` one of parts of the weights (`download/content_sample.py`), ""
  where not all of them are there. `source` (a repository, "" for the user's own), `revision`, `name` (of several files the
  first's) and `size` in bytes say where they are from and what they are called, and tell nothing apart. `shape` is that of the
  model, the same for all forms in which it is packed.
  """
  headers: str = ""
  hashes: str = ""
  sample: str = ""
  source: str = ""
  revision: str = ""
  name: str = ""
  size: int = 0
  shape: str = ""

  @property
  def key(self) -> str:
    """Short, and another one for other files. Of the same weights it differs between nodes of which only some know the hashes:
    ask `is_same`."""
    return digest_of((self.headers, self.hashes or self.sample))[:_KEY]

  def is_same(self, other: ModelFile) -> bool | None:
    """Whether two are the same weights; None where what is known of both cannot be compared."""
    if self.headers != other.headers:
      return False
    if self.hashes and other.hashes:
      return self.hashes == other.hashes
    if self.sample and other.sample:
      return self.sample == other.sample
    return True if self.key == other.key else None

  def is_form_of(self, other: ModelFile) -> bool:
    """Whether this may be the same model, packed in another way."""
    return self.headers != other.headers and bool(self.shape) and self.shape == other.shape

  def __str__(self) -> str:
    where = f" of {self.source}" if self.source else ""
    return f"{self.name or 'nothing'}{where}{f'@{self.revision[:12]}' if self.revision else ''} ({self.key})"


def digest_of(parts: Iterable[str]) -> str:
  """A hash of several words, which none of them may have line breaks for."""
  return hashlib.sha256("\n".join(parts).encode()).hexdigest()
