"""The body of a text completion, with what its text must be."""

from __future__ import annotations

import asyncio
from typing import Annotated

from aiohttp import web
from msgspec import Meta

from exo.api.constraints import ConstraintFields
from exo.api.grammars import text_grammar
from exo.api.held_schemas import held
from exo.api.told_headers import tell_relaxed
from exo.errors import InvalidRequestError
from exo.inference.grammar import COMPILE_S
from exo.orchestration.model_catalog import ModelInfo


class CompletionRequest(ConstraintFields, kw_only=True):
  prompt: str | list[str | int | list[int]]
  echo: bool | None = None
  logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
  suffix: str | None = None


async def checked_grammar(request: web.Request, model: ModelInfo, body: ConstraintFields) -> str:
  """The grammar of the text, "" where it is free; the response tells what was relaxed for it. Raises `InvalidRequestError`."""
  body.check_done()
  if body.wanted is None:
    return ""
  wanted, relaxed = await asyncio.to_thread(held, body.wanted)
  grammar = text_grammar(wanted)
  await asyncio.to_thread(model.grammars.ready)
  try:
    async with asyncio.timeout(COMPILE_S):
      warnings = await asyncio.to_thread(model.grammars.check, grammar)
  except TimeoutError:
    raise InvalidRequestError(f"the schema takes longer than {COMPILE_S:g} s to compile", body.wanted.param) from None
  except InvalidRequestError as error:
    raise InvalidRequestError(f"{body.wanted.param}: {error.message}", body.wanted.param) from None
  tell_relaxed(request, [*relaxed, *warnings])
  return grammar
