"""A JSON schema as agents write it, made into one that grammars can be made of; what of it cannot be held to is told by its path.

References are followed, `allOf` is merged, words for readers are left out. The texts that a schema asks for are tried by the
library (`inference/grammar.py`), whose regular expressions know less than those of JavaScript.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from exo.api.merged_schema import Schema, merged
from exo.api.schema_references import References
from exo.errors import InvalidRequestError

MAX_PARTS = 50_000  # of a schema whose references and `allOf` have been followed
_TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})
_TEXT = ("type", "pattern", "format", "minLength", "maxLength")
_NUMBERS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "multipleOf")
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_PLAIN = ("enum", "const", "pattern", "format")
# keywords that nothing is done for, and the value with which each says nothing
_NOT_HELD: dict[str, Any] = {
    "not": None, "if": None, "uniqueItems": False, "dependentRequired": {}, "dependentSchemas": {}, "dependencies": {},
    "contains": True, "propertyNames": True, "unevaluatedItems": True, "$dynamicRef": None, "$recursiveRef": None
}

# for each group of keywords of a text, those that it cannot be held to
Ask = Callable[[Sequence[str]], Sequence[Sequence[str]]]


def usable_schema(schema: Any, path: str, *, closed: bool, ask: Ask) -> tuple[Any, list[str]]:
  """(the schema, what of it cannot be held to: "path keyword").

  `closed`: an object has the properties that are named and no others, unless it says otherwise, and branches of `allOf` do not
  forbid one another's. Raises `InvalidRequestError` for one that is too large.
  """
  texts = sorted(
      {_asked(part)
       for part in _all(schema) if "pattern" in part or "format" in part}
      | {_asked({"pattern": name})
         for part in _all(schema)
         for name in _object(part.get("patternProperties"))}
  )
  work = _Work(schema, closed, dict(zip(texts, ask(texts), strict=True)) if texts else {})
  return work.whole(path), list(dict.fromkeys(work.relaxed))


def _all(schema: Any) -> Iterator[Schema]:
  """Every object in it."""
  left = [schema]
  while left:
    part = left.pop()
    if isinstance(part, dict):
      yield part
      left.extend(part.values())
    elif isinstance(part, list):
      left.extend(part)


def _object(value: Any) -> dict[str, Any]:
  return value if isinstance(value, dict) else {}


def _asked(part: Mapping[str, Any]) -> str:
  """What the library is asked of a text's keywords."""
  told = {key: part[key] for key in _TEXT if key in part and key != "type"}
  return json.dumps({"type": "string"} | told, sort_keys=True)


class _Work:
  def __init__(self, root: Any, closed: bool, dropped: Mapping[str, Sequence[str]]) -> None:
    self._root, self._closed, self._dropped = root, closed, dropped
    self._references = References(root)
    self._names: dict[tuple[str, bool], str] = {}
    self._waiting: list[tuple[str, Any, str, bool]] = []  # references whose targets are still to be made
    self._left = MAX_PARTS
    self.relaxed: list[str] = []

  def whole(self, path: str) -> Any:
    out = self._part(self._root, path, False)
    targets: dict[str, Any] = {}
    while self._waiting:
      name, target, at, of_more = self._waiting.pop()
      targets[name] = self._part(target, at, of_more)
    return {**out, "$defs": targets} if targets and isinstance(out, dict) else out

  def _relax(self, path: str, keyword: str) -> None:
    self.relaxed.append(f"{path} {keyword}")

  def _count(self) -> None:
    self._left -= 1
    if self._left < 0:
      raise InvalidRequestError(f"the schema is too large: with its references followed it has over {MAX_PARTS} parts")

  def _part(self, value: Any, path: str, of_more: bool) -> Any:
    """`of_more`: another part of the schema holds for the same object, which may have more properties than these."""
    self._count()
    if not isinstance(value, dict):
      if not isinstance(value, bool):
        self._relax(path, "schema")
      return value is not False
    relax = self._relax
    if isinstance(value.get("$ref"), str):
      found = self._references.followed(value["$ref"])
      if found is None:
        relax(path, "$ref")
        value = {key: inner for key, inner in value.items() if key != "$ref"}
      elif not _says_more(value):
        return {"$ref": self._named(found, path, of_more)}
    if "$ref" in value or "allOf" in value:
      value = merged(
          value, self._references, self._count, lambda keyword: relax(path, keyword), strict=not self._closed
      )
    return self._made(value, path, of_more)

  def _named(self, found: tuple[str, Any], path: str, of_more: bool) -> str:
    pointer, target = found
    key = (pointer, of_more)
    if key not in self._names:
      self._names[key] = f"{len(self._names)}"
      self._waiting.append((self._names[key], target, path, of_more))
    return f"#/$defs/{self._names[key]}"

  def _made(self, value: Schema, path: str, of_more: bool) -> Schema:
    out: Schema = {key: value[key] for key in _PLAIN if key in value}
    if "type" in value:
      out |= self._type(value["type"], path)
    if out.get("enum") == [] or not isinstance(out.get("enum", []), list):
      del out["enum"]
      self._relax(path, "enum")
    self._text(value, out, path)
    for key in (*_NUMBERS, *_LIMITS):
      number = value.get(key)
      if isinstance(number, int | float) and (not isinstance(number, bool) or key in _LIMITS):
        out[key] = int(number) if key in _NUMBERS[:-1] else number
    self._not_held(value, path)
    self._lists(value, out, path)
    self._branches(value, out, path, of_more)
    self._properties(value, out, path, of_more)
    return out

  def _type(self, told: Any, path: str) -> Schema:
    # what is no text is no type either
    kinds = [kind.lower() if isinstance(kind, str) else "" for kind in (told if isinstance(told, list) else [told])]
    known = [kind for kind in kinds if kind in _TYPES]
    if len(known) < len(kinds) or not kinds:
      self._relax(path, "type")
      return {}
    return {"type": known if isinstance(told, list) else known[0]}

  def _text(self, value: Schema, out: Schema, path: str) -> None:
    for key in self._dropped.get(_asked(value), ()) if "pattern" in value or "format" in value else ():
      out.pop(key, None)
      self._relax(path, key)

  def _not_held(self, value: Schema, path: str) -> None:
    for key, nothing in _NOT_HELD.items():
      if key not in value or value[key] in (nothing, {}) or (key == "if" and not {"then", "else"} & value.keys()):
        continue
      if key == "propertyNames" and value[key] == {"type": "string"}:
        continue
      self._relax(path, key)

  def _lists(self, value: Schema, out: Schema, path: str) -> None:
    items = value.get("items")
    first = items if isinstance(items, list) else value.get("prefixItems")
    rest = value.get("additionalItems") if isinstance(items, list) else items
    if isinstance(first, list):
      out["prefixItems"] = [self._part(item, f"{path}[]", False) for item in first]
    if isinstance(rest, dict | bool):
      out["items"] = self._part(rest, f"{path}[]", False)

  def _branches(self, value: Schema, out: Schema, path: str, of_more: bool) -> None:
    joined = of_more or isinstance(value.get("properties"), dict) or len({"anyOf", "oneOf", "allOf"} & value.keys()) > 1
    for key in ("anyOf", "oneOf", "allOf"):
      branches = value.get(key)
      if isinstance(branches, list) and branches:
        out[key] = [self._part(branch, path, joined or key == "allOf") for branch in branches]
      elif key in value and key != "allOf":
        self._relax(path, key)

  def _properties(self, value: Schema, out: Schema, path: str, of_more: bool) -> None:
    properties, others = value.get("properties"), value.get("additionalProperties")
    if isinstance(properties, dict):
      out["properties"] = {name: self._part(part, f"{path}.{name}", False) for name, part in properties.items()}
    if isinstance(value.get("required"), list):
      out["required"] = list(dict.fromkeys(map(str, value["required"])))
    if value.get("unevaluatedProperties") is False and others is None:
      if out.keys() & {"anyOf", "oneOf", "allOf"}:
        self._relax(path, "unevaluatedProperties")
      else:
        others = False
    elif value.get("unevaluatedProperties") not in (None, True, {}, False):
      self._relax(path, "unevaluatedProperties")
    for name, part in _object(value.get("patternProperties")).items():
      if self._dropped.get(_asked({"pattern": name})):
        self._relax(path, "patternProperties")
        others = True
      else:
        out.setdefault("patternProperties", {})[name] = self._part(part, path, False)
    if isinstance(others, dict | bool):
      out["additionalProperties"] = self._part(others, f"{path}.*", False)
    elif self._closed and not of_more and "properties" in out and not _have_properties(value):
      out["additionalProperties"] = False


def _says_more(value: Schema) -> bool:
  """Whether there is more beside a reference than words for readers."""
  held = {*_PLAIN, *_NUMBERS, *_LIMITS, *_NOT_HELD, "type", "items", "prefixItems", "properties", "required"}
  return bool(value.keys() & (held | {"additionalProperties", "patternProperties", "anyOf", "oneOf", "allOf"}))


def _list(value: Any) -> list[Any]:
  return value if isinstance(value, list) else []


def _have_properties(value: Schema) -> bool:
  """Whether branches of an object may have properties of their own."""
  branches = [branch for key in ("anyOf", "oneOf", "allOf") for branch in _list(value.get(key))]
  return any(isinstance(branch, dict) and branch.keys() & {"properties", "$ref", "allOf"} for branch in branches)
