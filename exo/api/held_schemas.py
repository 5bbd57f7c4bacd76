"""What of a request's schemas its answer can be held to: tools' leniently, what is wanted of the answer as strictly as it asks for."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from exo.api.chat_request import Tool
from exo.api.constraints import Wanted
from exo.api.json_schema import usable_schema
from exo.errors import InvalidRequestError
from exo.inference.grammar import as_lark, unusable_keywords


def held_tools(tools: Sequence[Tool], given_up: Collection[str], *, must_call: bool) -> tuple[list[Tool], list[str]]:
  """(the tools with schemas that grammars can be made of, what was relaxed for that). Blocks.

  `given_up`: names of those whose arguments are any object. Where a call is a must, raises `InvalidRequestError` for a tool that is
  `strict`, but that nothing could hold to its schema, and for a type that is none.
  """
  out: list[Tool] = []
  told: list[str] = []
  for tool in tools:
    function = tool.function
    path = f"tools.{function.name}"
    schema: Any = {"type": "object"}
    relaxed = [f"{path} parameters"]
    if function.name not in given_up:
      schema, relaxed = usable_schema(function.schema, path, closed=True, ask=_ask)
    if relaxed and function.strict and must_call:
      raise _refusal(relaxed, "tools", "leave out strict")
    if must_call and (wrong := [told for told in relaxed if told.endswith(" type")]):
      raise _refusal(wrong, "tools", "name one of JSON Schema's types")
    out.append(msgspec.structs.replace(tool, function=msgspec.structs.replace(function, parameters=schema)))
    told += relaxed
  return out, told


def held(wanted: Wanted | None) -> tuple[Wanted | None, list[str]]:
  """What is wanted in the library's words, and what was relaxed for that. Blocks. Raises `InvalidRequestError`."""
  if wanted is None or wanted.kind in ("regex", "choice"):
    return wanted, []
  try:
    if wanted.kind == "grammar":
      return Wanted("grammar", as_lark(wanted.value), wanted.param), []
    schema, relaxed = usable_schema(wanted.value, wanted.param, closed=False, ask=_ask)
  except InvalidRequestError as error:
    raise InvalidRequestError(f"{wanted.param}: {error.message}", wanted.param) from None
  if relaxed and not wanted.lenient:
    raise _refusal(relaxed, wanted.param, "send strict: false to have it relaxed")
  return Wanted("schema", schema, wanted.param, wanted.lenient), relaxed


def _refusal(relaxed: Sequence[str], param: str, otherwise: str) -> InvalidRequestError:
  at, _, keyword = relaxed[0].rpartition(" ")
  where = f"{at[:200]}: " if at != param else f"{param}: "
  return InvalidRequestError(
      f"{where}the schema cannot be used: answers cannot be held to its `{keyword}`: leave it out, or {otherwise}",
      param
  )


def _ask(schemas: Sequence[str]) -> Sequence[Sequence[str]]:
  return unusable_keywords(tuple(schemas))


def alone(tool: Tool) -> str:
  """A grammar of nothing but a tool's arguments, to find the one at fault."""
  return "start: %json " + json.dumps(tool.function.schema | {"x-guidance": {"lenient": True}})
