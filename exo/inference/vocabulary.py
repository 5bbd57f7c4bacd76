"""What a model's tokens are: their bytes, and which of them a text is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence


class Vocabulary(ABC):
  """`special`: tokens that plain text leaves out.

  `joins_bytes`: a text is the bytes of its tokens, joined, but for up to `stripped_spaces` at its beginning. Otherwise `text` knows how
  words become one, and the bytes are those of each token's text alone.
  """
  special: frozenset[int]
  joins_bytes: bool
  stripped_spaces: int

  @property
  @abstractmethod
  def size(self) -> int:
    """Ids are below it."""

  @abstractmethod
  def ids(self, text: str) -> list[int]:
    """Of a text in which the names of special tokens are those tokens. Lets other threads run meanwhile."""

  @abstractmethod
  def token_bytes(self, token_id: int) -> bytes:
    """Empty for ids that there are not; special tokens give their names."""

  @abstractmethod
  def id_of(self, name: str) -> int | None:
    """The token that is written so, if there is one."""

  def ids_of(self, names: Iterable[str]) -> dict[str, int]:
    """The same of many at once, of those that there are."""
    found = ((name, self.id_of(name)) for name in names)
    return {name: token_id for name, token_id in found if token_id is not None}

  def text(self, ids: Sequence[int]) -> str:
    """Of tokens; U+FFFD for bytes that are no characters, nothing for ids that there are not."""
    text = b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")
    spaces = len(text[:self.stripped_spaces]) - len(text[:self.stripped_spaces].lstrip(" "))
    return text[spaces:]
