"""The fields by which clients of different servers ask for an answer of a certain form."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

Schema = dict[str, Any] | bool
Choices = Annotated[list[str], Meta(max_length=1024)]


class JsonSchemaFormat(Struct):
  name: str | None = None
  description: str | None = None
  schema: Schema | None = None
  strict: bool | None = None


class ResponseFormat(Struct):
  """OpenAI's, with the additions of llama.cpp and Together (`schema`), of text-generation-inference (`value`) and of Fireworks
  (`grammar`).
  """
  param: ClassVar[str] = "response_format"  # where it stands in the request

  type: Literal["text", "json_object", "json_schema", "json", "regex", "grammar"]
  json_schema: JsonSchemaFormat | None = None
  schema: Schema | None = None
  strict: bool | None = None
  value: Schema | str | None = None
  regex: str | None = None
  pattern: str | None = None
  grammar: str | None = None


class StructuredOutputs(Struct):
  """vLLM's."""
  json: Schema | str | None = None
  regex: str | None = None
  choice: Choices | None = None
  grammar: str | None = None
  json_object: bool | None = None
  structural_tag: Any = None
  whitespace_pattern: str | None = None


class ConstraintFields(Struct, kw_only=True):
  """At most one of them may ask for something."""
  response_format: ResponseFormat | None = None
  json_schema: Schema | str | None = None  # llama.cpp's, and as a text SGLang's
  grammar: str | None = None  # llama.cpp's, in its notation or in Lark
  regex: str | None = None  # SGLang's
  ebnf: str | None = None  # SGLang's
  guided_json: Schema | str | None = None  # vLLM's, until it had `structured_outputs`
  guided_regex: str | None = None
  guided_choice: Choices | None = None
  guided_grammar: str | None = None
  guided_json_object: bool | None = None
  structured_outputs: StructuredOutputs | None = None
