"""What a request asks of its answer's form, in whichever dialect, as one thing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from exo.api.constraint_fields import ConstraintFields, ResponseFormat, StructuredOutputs
from exo.api.held_schemas import Check, HeldSchema, held_schema
from exo.api.schema import check_depth
from exo.errors import InvalidRequestError

MAX_REGEX_CHARS = 16 * 1024
_GBNF = re.compile(r"^\s*[A-Za-z][\w-]*\s*::=", re.MULTILINE)
_SLASH = re.compile(r"(\\.)|(/)|(\n)|(\r)", re.DOTALL)

Kind = Literal["schema", "regex", "choice", "grammar"]


@dataclass(frozen=True)
class Constraint:
  """`param` names the field that asked. `value`: a schema, a pattern, a tuple of texts or a grammar."""
  param: str
  kind: Kind
  value: Any
  strict: bool = True  # refuse what no grammar can hold

  def held(self, check: Check, lark_of: Callable[[str], str]) -> HeldSchema:
    """As a term of a grammar. Blocks; `lark_of` is the library's. Raises `InvalidRequestError`."""
    try:
      return self._held(check, lark_of)
    except InvalidRequestError as error:
      told = error.message if error.message.startswith(self.param) else f"{self.param}: {error.message}"
      raise InvalidRequestError(told, self.param.partition(".")[0]) from None

  def _held(self, check: Check, lark_of: Callable[[str], str]) -> HeldSchema:
    if self.kind == "schema":
      return held_schema(self.value, self.param, check, strict=self.strict, closing=False)
    if self.kind == "choice":
      return HeldSchema("(" + " | ".join(map(json.dumps, self.value)) + ")")
    if self.kind == "regex":
      rule = f"/{_SLASH.sub(_in_slashes, self.value)}/"
    else:
      lark = lark_of(self.value) if _GBNF.search(self.value) else self.value
      rule = f"%lark {{\n{lark}\n}}"
    if fault := check([f"start: answer\nanswer: {rule}"])[0][0]:
      raise InvalidRequestError(f"it cannot be used: {fault}")
    return HeldSchema(rule)


def _in_slashes(found: re.Match[str]) -> str:
  return {"/": r"\/", "\n": r"\n", "\r": r"\r"}.get(found[0], found[0])


def constraint_of(fields: ConstraintFields) -> Constraint | None:
  """The one that is asked for, None where an answer is free. Raises `InvalidRequestError`."""
  asked = [constraint for constraint in _each(fields) if constraint is not None]
  if len(asked) > 1:
    names = " and ".join(constraint.param for constraint in asked)
    raise InvalidRequestError(f"{names} each ask for a form of the answer: send one of them", asked[1].param)
  return asked[0] if asked else None


def _each(fields: ConstraintFields) -> list[Constraint | None]:
  outputs = fields.structured_outputs
  return [
      None if fields.response_format is None else constraint_of_format(fields.response_format),
      _schema("json_schema", fields.json_schema),
      _text("grammar", "grammar", fields.grammar),
      _text("regex", "regex", fields.regex),
      _text("ebnf", "grammar", fields.ebnf),
      _schema("guided_json", fields.guided_json),
      _text("guided_regex", "regex", fields.guided_regex),
      _choice("guided_choice", fields.guided_choice),
      _text("guided_grammar", "grammar", fields.guided_grammar),
      _object("guided_json_object", fields.guided_json_object),
      *([] if outputs is None else _structured(outputs)),
  ]  # yapf: disable


def _structured(outputs: StructuredOutputs) -> list[Constraint | None]:
  for name in ("structural_tag", "whitespace_pattern"):
    if getattr(outputs, name) is not None:
      raise InvalidRequestError(
          f"structured_outputs.{name} is not done here: json, json_object, regex, choice and grammar are",
          "structured_outputs"
      )
  return [
      _schema("structured_outputs.json", outputs.json),
      _text("structured_outputs.regex", "regex", outputs.regex),
      _choice("structured_outputs.choice", outputs.choice),
      _text("structured_outputs.grammar", "grammar", outputs.grammar),
      _object("structured_outputs.json_object", outputs.json_object),
  ]  # yapf: disable


def constraint_of_format(wanted: ResponseFormat) -> Constraint | None:
  """What a `response_format` asks for. Raises `InvalidRequestError`."""
  param, kind = wanted.param, wanted.type
  if kind == "text":
    return None
  if kind == "regex":
    texts = (wanted.regex, wanted.pattern, wanted.value)
    pattern = next((text for text in texts if isinstance(text, str) and text), None)
    if pattern is None:
      raise InvalidRequestError(f"{param}: the type regex needs a `pattern`", param)
    return _text(param, "regex", pattern)
  if kind == "grammar":
    text = wanted.grammar or wanted.value
    if not isinstance(text, str) or not text:
      raise InvalidRequestError(f"{param}: the type grammar needs a `grammar`", param)
    return _text(param, "grammar", text)
  inner = wanted.json_schema
  schema: Any = inner.schema if inner is not None and inner.schema is not None else wanted.schema
  schema = wanted.value if schema is None else schema
  if schema is None and kind == "json_schema":
    raise InvalidRequestError(f"{param}: json_schema needs a schema", param)
  strict = wanted.strict if inner is None or inner.strict is None else inner.strict
  found = _schema(param, {"type": "object"} if schema is None else schema)
  return found if found is None or strict is not False else replace(found, strict=False)


def _schema(param: str, value: Any) -> Constraint | None:
  if value is None or value == "":
    return None
  name = param.partition(".")[0]
  if isinstance(value, str):
    try:
      value = json.loads(value)
    except (ValueError, RecursionError):
      raise InvalidRequestError(f"{param}: the text is not valid JSON", name) from None
  if value is False:
    raise InvalidRequestError(f"{param}: the schema false allows nothing", name)
  if value is True:
    value = {}
  if not isinstance(value, Mapping):
    raise InvalidRequestError(f"{param}: a schema is an object", name)
  check_depth(value, name)
  return Constraint(param, "schema", value)


def _text(param: str, kind: Kind, value: str | None) -> Constraint | None:
  if not value:
    return None
  if kind == "regex" and len(value) > MAX_REGEX_CHARS:
    raise InvalidRequestError(
        f"{param}: the pattern has {len(value)} characters, {MAX_REGEX_CHARS} are allowed",
        param.partition(".")[0]
    )
  return Constraint(param, kind, value)


def _choice(param: str, value: list[str] | None) -> Constraint | None:
  if value is None:
    return None
  if not any(value):
    raise InvalidRequestError(f"{param}: there is no text to choose", param.partition(".")[0])
  return Constraint(param, "choice", tuple(dict.fromkeys(value)))


def _object(param: str, value: bool | None) -> Constraint | None:
  return Constraint(param, "schema", {"type": "object"}) if value else None
