"""The schemas that a request's answer or calls are held to, as far as a grammar can, and what of them it cannot."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from exo.api.json_schema import Relaxation, SchemaReader, TooManyPartsError, any_of, atoms, without
from exo.errors import InvalidRequestError
from exo.inference.grammar_check import Finding
from exo.log import log

HEADER = "X-Exo-Relaxed"
# one line break and some indentation: a small model otherwise writes spaces without end
_WHITESPACE = r"\n?[ ]{0,12}"
_MOST_TOLD, _LONGEST, _MOST_REASONS = 20, 96, 3
# what is left out, one after the other, of a schema that the library refuses as a whole
_SUSPECTS = (("oneOf", ), ("minProperties", "maxProperties"), ("patternProperties", ), ("pattern", "format"),
             ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
             ("minLength", "maxLength", "minItems", "maxItems"), ("required", ), ("allOf", ), ("$ref", ))

Check = Callable[[Sequence[str]], list[Finding]]
_told: ContextVar[tuple[str, ...]] = ContextVar("relaxed", default=())


@dataclass(frozen=True)
class HeldSchema:
  """`rule`: a term of a grammar for it."""
  rule: str
  relaxed: tuple[Relaxation, ...] = ()


def json_rule(schema: Mapping[str, Any]) -> str:
  return "%json " + json.dumps(dict(schema) | {"x-guidance": {"whitespace_pattern": _WHITESPACE}})


def held_schema(schema: Mapping[str, Any], at: str, check: Check, *, strict: bool, closing: bool) -> HeldSchema:
  """The schema as a grammar can hold it. What of it no grammar can is left out, or, where `strict`, refused.

  Blocks. `check` is what the library says of grammars, `closing` as in `SchemaReader`. Raises `InvalidRequestError` that
  begins with `at`, which leads to the schema in the request.
  """
  told: list[Relaxation] = []
  try:
    pairs = list(dict.fromkeys(atoms(schema)))
    found = check([_start({"type": "string", keyword: text}) for keyword, text in pairs]) if pairs else []
    reasons = {pair: finding[0] for pair, finding in zip(pairs, found, strict=True)}
    reader = SchemaReader(schema, lambda keyword, text: reasons.get((keyword, text), ""), closing)
    taken = reader.read(at)
    told = reader.told
  except (TooManyPartsError, RecursionError):
    if strict:
      raise InvalidRequestError(f"{at}: its references lead to too many schemas: write it with fewer") from None
    return HeldSchema(json_rule({"type": "object"}), (Relaxation(at, "(all of it)", "it has too many parts"), ))
  if strict:
    if told:
      raise InvalidRequestError(f"{at}: no answer can be held to {_named(told)}: leave it out, or send strict: false")
    return HeldSchema(json_rule(taken))
  return _accepted(taken, at, check, told)


def _accepted(schema: dict[str, Any], at: str, check: Check, told: list[Relaxation]) -> HeldSchema:
  """The schema without as much as the library must not see."""
  candidate, dropped = schema, list[Relaxation]()
  first = ""
  for keywords in ((), *_SUSPECTS):
    fewer = list[Relaxation]()
    if keywords == ("oneOf", ):
      candidate = any_of(candidate, at, fewer)
    elif keywords:
      candidate = without(candidate, frozenset(keywords), at, fewer)
    if keywords and not fewer:
      continue
    dropped += fewer
    fault, notes = check([_start(candidate)])[0]
    if not fault:
      noted = [Relaxation(at, note[:40]) for note in notes]
      return HeldSchema(json_rule(candidate), (*told, *dropped, *noted))
    first = first or fault
  return HeldSchema(json_rule({"type": "object"}), (Relaxation(at, "(all of it)", first), ))


def _start(schema: Mapping[str, Any]) -> str:
  return "start: " + json_rule(schema)


def _named(relaxed: Sequence[Relaxation]) -> str:
  named = [f"{item} ({item.reason})" if item.reason else str(item) for item in relaxed[:_MOST_REASONS]]
  return ", ".join([*named, "and more"] if len(relaxed) > _MOST_REASONS else named)


def tell_relaxed(relaxed: Sequence[Relaxation]) -> None:
  """The response that is prepared in this context names what of the request's schemas is not held."""
  if not relaxed:
    return
  texts = list(dict.fromkeys(re.sub(r"[^\x20-\x2b\x2d-\x7e]", "?", str(item)[-_LONGEST:]) for item in relaxed))
  told = (*texts[:_MOST_TOLD], "and more") if len(texts) > _MOST_TOLD else tuple(texts)
  log(1, "no grammar can hold an answer to these parts of its schemas, which are left out: %s", ", ".join(told))
  _told.set(told)


async def add_relaxed(request: web.Request, response: web.StreamResponse) -> None:
  """Signal `on_response_prepare`."""
  if told := _told.get():
    response.headers[HEADER] = ", ".join(told)
