"""Filling the gap between two texts: what the routes that do so have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exo.api.aside import aside
from exo.errors import InvalidRequestError
from exo.inference.fill_in import fill_in_of
from exo.orchestration.model_catalog import ModelInfo

_LONGEST_WORD = 16  # characters that a token has on average in any text: more of them than that are not read


@dataclass(frozen=True)
class GapPrompt:
  """`end_ids`: tokens at which what fills the gap is over. `is_cut`: what is farther from the gap was left out."""
  ids: list[int]
  end_ids: frozenset[int]
  is_cut: bool = False


async def gap_prompt(
    model: ModelInfo,
    before: str,
    after: str,
    files: Sequence[tuple[str, str]] = (),
    *,
    param: str = "suffix",
    cut_for: int | None = None
) -> GapPrompt:
  """`cut_for`: of what is too long for the context less so many tokens of an answer, what is next to the gap is taken.

  Raises `InvalidRequestError` where the model has no tokens for gaps, and for more than its context where nothing is to be cut.
  """
  filler = await aside(0, fill_in_of, model.tokenizer)
  if filler is None:
    raise InvalidRequestError(
        f"{param}: {model.id} cannot fill gaps, its vocabulary has no tokens for that; ask one that can, such as Qwen's, StarCoder or Codestral",
        param
    )
  if cut_for is not None:
    most = max(model.max_context - cut_for, model.max_context // 4)
    longest = most * _LONGEST_WORD
    kept = [(name, text[-longest:]) for name, text in files]
    size = min(len(before), longest) + min(len(after), longest) + sum(len(text) for _, text in kept)
    ids, is_cut = await aside(size, filler.prompt, before[-longest:], after[:longest], kept, most)
    return GapPrompt(ids, filler.end_ids, is_cut or len(before) > longest or len(after) > longest)
  texts = (before, after, *(text for _, text in files))
  size = sum(map(len, texts))
  for text in texts:  # each by itself, so that no text costs more than its bound
    await aside(len(text), model.encode, text, "the prompt", param)
  ids, _ = await aside(size, filler.prompt, before, after, files)
  if len(ids) > model.max_context:
    raise model.too_long(len(ids), "the prompt", param)
  return GapPrompt(ids, filler.end_ids)
