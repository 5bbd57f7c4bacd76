"""`allOf` of a JSON schema, and what stands beside a `$ref`, as one schema: what holds for one value, said in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exo.api.schema_references import References

Schema = dict[str, Any]

_DEEPEST = 64
_WORDS = frozenset({
    "title", "description", "default", "examples", "example", "$comment", "deprecated", "readOnly", "writeOnly", "$id",
    "$schema", "$anchor", "$defs", "definitions", "discriminator", "id"
})
_HIGHEST = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"})
_LOWEST = frozenset({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"})


def merged(
    value: Schema,
    references: References,
    count: Callable[[], None],
    relax: Callable[[str], None],
    *,
    strict: bool,
    way: tuple[str, ...] = ()
) -> Schema:
  """`value` without `$ref`, and without those branches of `allOf` that can be said otherwise.

  `count` is called for each branch, `relax` with a keyword that could not be kept. `strict`: a branch that allows no other
  properties forbids those of the others; else they all are allowed.
  """
  out = {key: inner for key, inner in value.items() if key not in ("$ref", "allOf")}
  branches: list[Any] = [{"$ref": value["$ref"]}] if isinstance(value.get("$ref"), str) else []
  if isinstance(value.get("allOf"), list):
    branches += value["allOf"]
  elif "allOf" in value:
    relax("allOf")
  left: list[Any] = []
  for branch in branches:
    count()
    inner_way = way
    if isinstance(branch, dict) and isinstance(branch.get("$ref"), str):
      found = references.followed(branch["$ref"])
      if found is None or found[0] in way or len(way) > _DEEPEST:
        relax("$ref")
        branch = {key: inner for key, inner in branch.items() if key != "$ref"}
      else:
        inner_way = (*way, found[0])
        rest = {key: inner for key, inner in branch.items() if key != "$ref" and key not in _WORDS}
        target = found[1]
        branch = {"allOf": [target, rest]} if rest else target
    if isinstance(branch, bool):
      left.extend([] if branch else [False])
      continue
    if not isinstance(branch, dict):
      relax("allOf")
      continue
    if "$ref" in branch or "allOf" in branch:
      branch = merged(branch, references, count, relax, strict=strict, way=inner_way)
    if not strict and (_forbidding(out, branch) != out or _forbidding(branch, out) != branch):
      relax("additionalProperties")
    out = _joined(out, branch, left, strict)
  if left:
    out["allOf"] = [*(out.get("allOf") or ()), *left]
  return out


def _joined(a: Schema, b: Schema, left: list[Any], strict: bool) -> Schema:
  """What holds where both hold; what cannot be said in one schema is added to `left`."""
  out = dict(a)
  if strict:
    a, b = _forbidding(a, b), _forbidding(b, a)
    out = dict(a)
  for key, value in b.items():
    if key not in out:
      out[key] = value
    elif key in _WORDS or out[key] == value:
      continue
    elif key in ("properties", "patternProperties") and isinstance(value, dict) and isinstance(out[key], dict):
      both = out[key].keys() & value.keys()
      out[key] = out[key] | value | {
          name: {"allOf": [out[key][name], value[name]]}
          for name in both if out[key][name] != value[name]
      }
    elif key == "required" and isinstance(value, list) and isinstance(out[key], list):
      out[key] = [*out[key], *value]
    elif key == "enum" and isinstance(value, list) and isinstance(out[key], list):
      out[key] = [item for item in out[key] if item in value]
    elif key in _HIGHEST | _LOWEST and all(isinstance(v, int | float) for v in (value, out[key])):
      out[key] = max(out[key], value) if key in _HIGHEST else min(out[key], value)
    elif key == "type" and (common := _common(out[key], value)):
      out[key] = common
    elif key in ("additionalProperties", "items") and isinstance(value, dict | bool):
      out[key] = False if False in (value, out[key]) else {"allOf": [out[key], value]}
    else:
      left.append({key: value})
  return out


def _common(a: Any, b: Any) -> list[str] | str:
  """The types that both allow."""
  ours, theirs = (kind if isinstance(kind, list) else [kind] for kind in (a, b))
  found = [kind for kind in ours if kind in theirs or (kind == "integer" and "number" in theirs)]
  found += [kind for kind in theirs if kind == "integer" and "number" in ours and kind not in found]
  return found[0] if len(found) == 1 else found


def _forbidding(a: Schema, b: Schema) -> Schema:
  """`a`, with those of its properties forbidden that `b` does not know and does not allow."""
  others, properties = b.get("additionalProperties"), a.get("properties")
  if others is not False or not isinstance(properties, dict) or b.get("patternProperties"):
    return a
  known = b.get("properties") or {}
  return a | {"properties": {name: part if name in known else False for name, part in properties.items()}}
