"""What a request says that its answer must be, in the words of each server that clients know: one of them at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from exo.api.not_done import NotDone
from exo.api.schema import check_depth
from exo.errors import InvalidRequestError

MAX_CHOICES = 4096

Kind = Literal["schema", "regex", "choice", "grammar"]
Choices = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=MAX_CHOICES)]
SchemaValue = dict[str, Any] | bool
SomeSchema = SchemaValue | str  # as vLLM and SGLang take it: an object, or its text


@dataclass(frozen=True)
class Wanted:
  """The answer is JSON of the schema `value`, matches it as a regular expression, is one of it, or follows it as a grammar.

  `param` is the field that says so; where `lenient`, what a schema cannot be held to is left out.
  """
  kind: Kind
  value: Any
  param: str = "response_format"
  lenient: bool = False


class JsonSchemaFormat(Struct):
  name: str | None = None
  description: str | None = None
  schema: SchemaValue | None = None
  strict: bool | None = None


class ResponseFormat(Struct):
  """OpenAI's, with what llama.cpp, Together, Fireworks and TGI put into it."""
  type: Literal["text", "json_object", "json_schema", "json", "regex", "grammar", "structural_tag"]
  json_schema: JsonSchemaFormat | None = None
  schema: SomeSchema | None = None
  strict: bool | None = None
  pattern: str | None = None
  grammar: str | None = None
  value: Any = None

  @property
  def wanted(self) -> Wanted | None:
    """None for free text. Raises `InvalidRequestError`."""
    param = "response_format"
    if self.type == "text":
      return None
    if self.type in ("regex", "grammar"):
      told = self.pattern if self.type == "regex" else self.grammar
      told = self.value if told is None else told
      if not isinstance(told, str) or not told:
        raise InvalidRequestError(
            f"{param}: type {self.type} needs {'a pattern' if self.type == 'regex' else 'a grammar'}", param
        )
      return Wanted("regex" if self.type == "regex" else "grammar", told, param)
    if self.type == "structural_tag":
      raise _structural_tag(param)
    return self._schema(param)

  def _schema(self, param: str) -> Wanted:
    inner = self.json_schema or JsonSchemaFormat()
    told = next((s for s in (inner.schema, self.schema, self.value) if s is not None), None)
    if told is None and self.type == "json_object":
      told = {"type": "object"}
    if told is None:
      raise InvalidRequestError(f"{param}: {self.type} needs a schema", param)
    return _of_schema(told, param, lenient=False in (inner.strict, self.strict))


class StructuredOutputs(Struct):
  """vLLM's."""
  json: SomeSchema | None = None
  regex: str | None = None
  choice: Choices | None = None
  grammar: str | None = None
  json_object: bool | None = None
  structural_tag: Any = None


class ConstraintFields(NotDone, kw_only=True):
  """Every field by which a client may say what the answer must be."""
  response_format: ResponseFormat | None = None
  json_schema: SomeSchema | None = None  # llama.cpp's
  grammar: str | None = None  # llama.cpp's GBNF, or Lark
  guided_json: SomeSchema | None = None  # vLLM's older names
  guided_regex: str | None = None
  guided_choice: Choices | None = None
  guided_grammar: str | None = None
  structured_outputs: StructuredOutputs | None = None
  regex: str | None = None  # SGLang's
  ebnf: str | None = None

  @property
  def wanted(self) -> Wanted | None:
    """The one of them that is given; None where the answer is free. Raises `InvalidRequestError` for two, or a bad one."""
    inner = self.structured_outputs or StructuredOutputs()
    if inner.structural_tag is not None:
      raise _structural_tag("structured_outputs")
    given: list[tuple[str, Kind, Any]] = [
        ("json_schema", "schema", self.json_schema), ("grammar", "grammar", self.grammar),
        ("guided_json", "schema", self.guided_json), ("guided_regex", "regex", self.guided_regex),
        ("guided_choice", "choice", self.guided_choice), ("guided_grammar", "grammar", self.guided_grammar),
        ("structured_outputs.json", "schema", inner.json), ("structured_outputs.regex", "regex", inner.regex),
        ("structured_outputs.choice", "choice", inner.choice),
        ("structured_outputs.grammar", "grammar", inner.grammar),
        ("structured_outputs.json_object", "schema", {"type": "object"} if inner.json_object else None),
        ("regex", "regex", self.regex), ("ebnf", "grammar", self.ebnf)
    ]  # yapf: disable
    # presets and pages of others send empty texts where there is nothing to say
    found = [(name, kind, value) for name, kind, value in given if value is not None and value != ""]
    of_format = self.response_format.wanted if self.response_format is not None else None
    names = [*([of_format.param] if of_format is not None else []), *(name for name, _, _ in found)]
    if len(names) > 1:
      raise InvalidRequestError(
          f"{' and '.join(names)} each say what the answer must be: send one of them", names[-1].partition(".")[0]
      )
    if not found:
      return of_format
    name, kind, value = found[0]
    param = name.partition(".")[0]
    return _of_schema(value, param) if kind == "schema" else Wanted(kind, value, param)


def _of_schema(told: Any, param: str, *, lenient: bool = False) -> Wanted:
  if isinstance(told, str):
    try:
      told = json.loads(told)
    except (ValueError, RecursionError):
      raise InvalidRequestError(f"{param}: the schema is a text that is no JSON", param) from None
  if told is True:
    return Wanted("schema", {}, param, lenient)
  if told is False:
    raise InvalidRequestError(f"{param}: the schema false allows nothing", param)
  if not isinstance(told, Mapping):
    raise InvalidRequestError(f"{param}: a schema is an object", param)
  check_depth(told, param)
  return Wanted("schema", dict(told), param, lenient)


def _structural_tag(param: str) -> InvalidRequestError:
  return InvalidRequestError(
      f"{param}: structural_tag is not done here: send tools, whose calls are held to their schemas, or a grammar",
      param
  )
