"""Filling the gap between two texts: what the routes that do so have in common."""

from __future__ import annotations

from collections.abc import Sequence

from exo.api.aside import aside
from exo.errors import InvalidRequestError
from exo.inference.fill_in import fill_in_of
from exo.orchestration.model_catalog import ModelInfo


async def gap_prompt(
    model: ModelInfo,
    before: str,
    after: str,
    files: Sequence[tuple[str, str]] = (),
    param: str = "suffix"
) -> tuple[list[int], frozenset[int]]:
  """Token ids of the prompt, and the tokens at which what fills the gap is over.

  Raises `InvalidRequestError` where the model has no tokens for it, and for more than its context.
  """
  filler = await aside(0, fill_in_of, model.tokenizer)
  if filler is None:
    raise InvalidRequestError(
        f"{param}: {model.id} cannot fill gaps, its vocabulary has no tokens for that; ask one that can, such as Qwen's, StarCoder or Codestral",
        param
    )
  texts = (before, after, *(text for _, text in files))
  size = sum(map(len, texts))
  for text in texts:  # each by itself, so that no text costs more than its bound
    await aside(len(text), model.encode, text, "the prompt", param)
  ids = await aside(size, filler.prompt, before, after, files)
  if len(ids) > model.max_context:
    raise model.too_long(len(ids), "the prompt", param)
  return ids, filler.end_ids
