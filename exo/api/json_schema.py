"""A JSON schema as clients write them, turned into one that a grammar can hold an answer to.

What no grammar can hold is left out, and named. Nothing here asks the library: what patterns and formats it takes is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MOST_PARTS = 20_000  # of a schema whose references are followed

_NOT_HELD = frozenset({
    "not", "if", "uniqueItems", "dependentRequired", "dependentSchemas", "dependencies", "contains", "propertyNames",
    "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef"
})
_WITH_THOSE = frozenset({"then", "else", "minContains", "maxContains", "$dynamicAnchor", "$recursiveAnchor"})
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems")
_PARTS = ("allOf", "anyOf", "oneOf")

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Relaxation:
  """What of a schema is not held: a keyword where `path` leads."""
  path: str
  keyword: str
  reason: str = ""

  def __str__(self) -> str:
    return f"{self.path} {self.keyword}".strip()


class TooManyPartsError(Exception):
  """A schema whose references lead to more than is followed."""


def atoms(schema: Any) -> Iterator[tuple[str, str]]:
  """Every ("pattern", text) and ("format", name) that stands in it."""
  for part in _parts(schema):
    for keyword in ("pattern", "format"):
      if isinstance(value := part.get(keyword), str):
        yield keyword, value
    if isinstance(named := part.get("patternProperties"), dict):
      yield from (("pattern", pattern) for pattern in named)
    if isinstance(names := part.get("propertyNames"), dict) and isinstance(names.get("pattern"), str):
      yield "pattern", names["pattern"]


def without(schema: Any, keywords: frozenset[str], path: str, told: list[Relaxation]) -> Any:
  """The schema without these keywords, which are noted."""
  if not isinstance(schema, dict):
    return schema
  told.extend(Relaxation(path, keyword) for keyword in schema if keyword in keywords)
  left = {key: value for key, value in schema.items() if key not in keywords}
  return _mapped(left, lambda child, at, _: without(child, keywords, path + at, told))


def any_of(schema: Any, path: str, told: list[Relaxation]) -> Any:
  """The schema with `anyOf` for `oneOf`, which is noted."""
  if not isinstance(schema, dict):
    return schema
  out = _mapped(schema, lambda child, at, _: any_of(child, path + at, told))
  if isinstance(choices := out.pop("oneOf", None), list):
    told.append(Relaxation(path, "oneOf"))
    out["allOf"] = [*out.get("allOf", ()), {"anyOf": choices}]
  return out


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
  waiting = [schema]
  while waiting:
    part = waiting.pop()
    if isinstance(part, dict):
      yield part
      _mapped(part, lambda child, at, key: waiting.append(child))


def _mapped(schema: dict[str, Any], change: Callable[[Any, str, str], Any]) -> dict[str, Any]:
  """With `change(child, its place, the keyword)` of every schema that stands directly in it."""
  out = dict(schema)
  for key, value in schema.items():
    if key in _BY_NAME and isinstance(value, dict):
      place = "." if key == "properties" else f".{key}."
      out[key] = {name: change(child, f"{place}{name}", key) for name, child in value.items()}
    elif (key in _LISTS or key == "items") and isinstance(value, list):
      out[key] = [change(child, f".{key}[{i}]", key) for i, child in enumerate(value)]
    elif key in _SINGLE and isinstance(value, dict):
      out[key] = change(value, "[]" if key == "items" else f".{key}", key)
  return out


def _are_texts(values: Any) -> bool:
  return isinstance(values, list) and all(isinstance(value, str) for value in values)


class SchemaReader:
  """Reads one schema. `refused` says why a pattern or a format is not taken, "" for those that are.

  `closing`: objects have the properties that are named, in all of their parts together, and no others, unless they say so.
  """
  def __init__(self, root: Schema, refused: Callable[[str, str], str], closing: bool) -> None:
    self.told: list[Relaxation] = []
    self._root, self._refused, self._closing = root, refused, closing
    self._followed: list[str] = []
    self._left = MOST_PARTS

  def read(self, path: str) -> dict[str, Any]:
    """Raises `TooManyPartsError`."""
    read: dict[str, Any] = self._read(dict(self._root), path, part=False)
    return read

  def _read(self, schema: Any, path: str, *, part: bool) -> Any:
    """`part`: of an object that is closed as a whole."""
    if not isinstance(schema, dict):
      return schema
    self._count()
    if "$ref" in schema:
      schema = self._referring(schema, path)
      if part and "$ref" in schema and schema["$ref"] not in self._followed:
        return self._followed_part(schema, path)
    own = self._held(schema, path)
    composed = self._closing and (part or self._is_composed(schema))

    def child(value: Any, at: str, key: str) -> Any:
      return self._read(value, path + at, part=composed and key in _PARTS)

    out = _mapped(own, child)
    if composed and not part and "$ref" in out:
      # an object that another one is added to is read where it stands, since it must not be closed alone
      more = self._read({"$ref": out.pop("$ref")}, path, part=True)
      out["allOf"] = [more, *out.get("allOf", [])]
    if self._closing and part and out.get("additionalProperties") is False:
      del out["additionalProperties"]
    elif self._closing and not part:
      self._close(schema, out, composed)
    return out

  def _count(self) -> None:
    self._left -= 1
    if self._left < 0:
      raise TooManyPartsError

  def _is_composed(self, schema: Schema) -> bool:
    more = ("anyOf", "oneOf", "$ref", "then", "else", "dependentSchemas")
    return "allOf" in schema or ("properties" in schema and any(key in schema for key in more))

  def _referring(self, schema: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema, without its reference where that leads nowhere."""
    reference = schema["$ref"]
    local = isinstance(reference, str) and reference.startswith("#")
    if isinstance(reference, str) and (not local or reference.startswith("#/")):
      try:
        self._resolve(reference)
      except LookupError:
        self.told.append(Relaxation(path, "$ref", f"{reference[:80]!r} is not in the schema"))
        return {key: value for key, value in schema.items() if key != "$ref"}
    return schema

  def _followed_part(self, schema: dict[str, Any], path: str) -> Any:
    try:
      target = self._resolve(schema["$ref"])
    except LookupError:
      return schema
    self._followed.append(schema["$ref"])
    try:
      found = self._read(target, path, part=True)
    finally:
      self._followed.pop()
    rest = {key: value for key, value in schema.items() if key != "$ref"}
    return {"allOf": [found, self._read(rest, path, part=True)]} if rest else found

  def _resolve(self, reference: str) -> Any:
    """Raises `LookupError`."""
    if not reference.startswith("#"):
      if any(part.get("$id") == reference for part in _parts(dict(self._root))):
        return True
      raise KeyError(reference)
    found: Any = self._root
    for step in reference.removeprefix("#").removeprefix("/").split("/") if reference not in ("#", "#/") else ():
      name = step.replace("~1", "/").replace("~0", "~").replace("%24", "$").replace("%20", " ")
      if isinstance(found, list) and name.isdecimal():
        found = found[int(name)]
      elif isinstance(found, dict):
        found = found[name]
      else:
        raise KeyError(reference)
    return found

  def _held(self, schema: dict[str, Any], path: str) -> dict[str, Any]:
    """Its own keywords as far as a grammar can hold them."""
    out = {key: value for key, value in schema.items() if key not in _NOT_HELD and key not in _WITH_THOSE}
    for keyword in ("pattern", "format"):
      if isinstance(value := out.get(keyword), str) and (reason := self._refused(keyword, value)):
        self.told.append(Relaxation(path, keyword, reason))
        del out[keyword]
    if isinstance(named := out.get("patternProperties"), dict):
      for pattern in [pattern for pattern in named if self._refused("pattern", pattern)]:
        self.told.append(Relaxation(path, "patternProperties", self._refused("pattern", pattern)))
        # what the pattern allowed must not be forbidden by its absence
        out["patternProperties"] = {k: v for k, v in out["patternProperties"].items() if k != pattern}
        if out.get("additionalProperties") is False or self._closing:
          out["additionalProperties"] = True
    for keyword in schema:
      if keyword in _NOT_HELD and not self._replaced(keyword, schema[keyword], schema, out):
        self.told.append(Relaxation(path, keyword))
    return out

  def _replaced(self, keyword: str, value: Any, schema: dict[str, Any], out: dict[str, Any]) -> bool:
    """Whether the schema says the same without this keyword, or `out` does now in other words."""
    if keyword == "uniqueItems":
      return value is False
    if keyword == "propertyNames":
      return value is True or (isinstance(value, dict) and self._named(value, out))
    if keyword == "unevaluatedItems":
      return value is True or (value is False and "items" in schema and "allOf" not in schema)
    if keyword != "unevaluatedProperties":
      return value in ({}, []) if keyword.startswith("depend") else False
    if value is False and not self._closing and not any(key in schema for key in (*_PARTS, "$ref", "if")):
      out.setdefault("additionalProperties", False)
    return value is True or self._closing or out.get("additionalProperties") is False

  def _named(self, names: dict[str, Any], out: dict[str, Any]) -> bool:
    """Names of properties as the properties that they allow, where no others are named."""
    rest = {k: v for k, v in names.items() if k not in ("title", "description") and (k, v) != ("type", "string")}
    if not rest:
      return True
    if any(key in out for key in ("properties", "patternProperties", *_PARTS, "$ref")):
      return False
    value = out.get("additionalProperties", {})
    if list(rest) == ["pattern"] and isinstance(rest["pattern"], str) and not self._refused("pattern", rest["pattern"]):
      out["patternProperties"] = {rest["pattern"]: value}
    elif list(rest) == ["enum"] and _are_texts(rest["enum"]):
      out["properties"] = dict.fromkeys(rest["enum"], value)
    else:
      return False
    out["additionalProperties"] = False
    return True

  def _close(self, schema: dict[str, Any], out: dict[str, Any], composed: bool) -> None:
    kind = schema.get("type")
    if not (kind == "object" or (isinstance(kind, list) and "object" in kind) or (kind is None and composed)):
      return
    if not composed:
      if isinstance(out.get("properties"), dict) and self._names_all(out, out["properties"].keys()):
        out.setdefault("additionalProperties", False)
      return
    if out.get("additionalProperties", False) is not False:
      return
    names = dict.fromkeys(self._names(schema, set()) or ())
    if names and self._names_all(out, names.keys()):
      out["properties"] = out.get("properties",
                                  {}) | {name: {}
                                         for name in names if name not in out.get("properties", {})}
      out["additionalProperties"] = False
    else:
      out.pop("additionalProperties", None)

  def _names_all(self, schema: Schema, names: Any) -> bool:
    """Whether what must be there is named, so that others may be forbidden."""
    required = schema.get("required")
    return not isinstance(required, list) or "patternProperties" in schema or all(name in names for name in required)

  def _names(self, schema: Any, seen: set[str]) -> list[str] | None:
    """Of the properties of an object and all that it is composed of; None where it may have others."""
    self._count()
    if not isinstance(schema, dict):
      return []
    if schema.get("additionalProperties", False) is not False or "patternProperties" in schema:
      return None
    found = list(schema["properties"]) if isinstance(schema.get("properties"), dict) else []
    parts = [part for key in _PARTS if isinstance(schema.get(key), list) for part in schema[key]]
    parts += [schema[key] for key in ("then", "else") if key in schema]
    if isinstance(schema.get("dependentSchemas"), dict):
      parts += schema["dependentSchemas"].values()
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference not in seen:
      seen.add(reference)
      try:
        parts.append(self._resolve(reference))
      except LookupError:
        return None
    for part in parts:
      more = self._names(part, seen)
      if more is None:
        return None
      found += more
    return found
