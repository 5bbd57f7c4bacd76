"""In which calls an engine gives a sequence the numbers that it would have alone: what `--exact` is built on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_MOST_MULTIPLE, _MOST_ROWS = 256, 2**16


@dataclass(frozen=True, slots=True)
class Exactness:
  """A token's bits depend on its own sequence alone, as long as

  - at most `decode_rows` sequences are decoded in one call (0: any number), which is the engine's own affair;
  - prompts are cut at multiples of `prompt_multiple` tokens, no piece being shorter unless the whole prompt is: at all of them, or, if
    pieces may be `joined`, at any;
  - at most `draft_rows` tokens of one sequence are decoded in one step (0: any number, 1: no drafts).

  `as_prompt`: rows of a cache that decoding made are those that a prompt of the same tokens makes.
  """
  decode_rows: int = 0
  prompt_multiple: int = 1
  joined: bool = True
  draft_rows: int = 0
  as_prompt: bool = True

  @property
  def is_possible(self) -> bool:
    """Of one that somebody else has written: multiples are powers of two, so that the greatest of several is one of all of them."""
    multiple = self.prompt_multiple
    is_multiple = 0 < multiple <= _MOST_MULTIPLE and multiple & (multiple - 1) == 0
    return is_multiple and all(0 <= rows <= _MOST_ROWS for rows in (self.decode_rows, self.draft_rows))

  @property
  def least_piece(self) -> int:
    """Tokens of a prompt that are computed at once, at least, where there are more of them: one alone is decoding, which takes other
    kernels."""
    return max(2, self.prompt_multiple)

  @property
  def most_piece(self) -> int:
    """Tokens that the smallest piece may have, wherever it begins."""
    return 2 * self.least_piece

  def whole(self, tokens: int) -> int:
    """So many or fewer: as many as end where a piece may."""
    return tokens - tokens % self.prompt_multiple

  def smallest(self, position: int, left: int) -> int:
    """How many of the `left` tokens of a prompt must be computed at once, from `position` on."""
    end = self.whole(position + 2 + self.prompt_multiple - 1)
    return left if position + left - end < self.least_piece else end - position

  def piece(self, position: int, left: int, most: int) -> int:
    """As many of them as may be computed at once, at most `most`; 0 where these are fewer than must be."""
    smallest = self.smallest(position, left)
    if smallest > most:
      return 0
    if not self.joined:
      return smallest
    if left <= most:
      return left
    end = self.whole(min(position + most, position + left - self.least_piece))
    return max(smallest, end - position)

  @classmethod
  def of_all(cls, stages: Iterable[Exactness]) -> Exactness:
    """What holds for a plan of these stages."""
    each = tuple(stages)
    return cls(
        _least(of.decode_rows for of in each), max(of.prompt_multiple for of in each), all(of.joined for of in each),
        _least(of.draft_rows for of in each), all(of.as_prompt for of in each)
    )


# one row a call, prompts always cut at the same places: whatever kernels there are, the same ones are used each time
CAREFUL = Exactness(decode_rows=1, prompt_multiple=256, joined=False, draft_rows=1, as_prompt=False)


def _least(bounds: Iterable[int]) -> int:
  return min((bound for bound in bounds if bound), default=0)
