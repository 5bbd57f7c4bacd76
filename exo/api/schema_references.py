"""Where the references of a JSON schema lead. Nothing is ever fetched for them."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

_LONGEST_CHAIN = 64


class References:
  """Of one schema: `#`, pointers like `#/$defs/Name`, and names given by `$anchor` or `$id`."""
  def __init__(self, root: Any) -> None:
    self._root = root
    self._id = str(root.get("$id") or root.get("id") or "") if isinstance(root, dict) else ""
    self._anchors: dict[str, Any] | None = None

  def followed(self, reference: str) -> tuple[str, Any] | None:
    """(where it leads in the end, what is there); None where there is nothing, or where it leads back to itself."""
    for _ in range(_LONGEST_CHAIN):
      target = self._target(reference)
      if target is _NOTHING:
        return None
      onward = target.get("$ref") if isinstance(target, dict) and len(target.keys() - _WORDS) == 1 else None
      if not isinstance(onward, str):
        return reference, target
      reference = onward
    return None

  def _target(self, reference: str) -> Any:
    if self._id and reference.startswith(self._id.rstrip("#")):
      reference = "#" + reference.removeprefix(self._id.rstrip("#")).removeprefix("#")
    if reference in ("#", "#/"):
      return self._root
    if not reference.startswith("#/"):
      return self._named(reference.removeprefix("#"))
    found = self._root
    for step in reference[2:].split("/"):
      step = unquote(step).replace("~1", "/").replace("~0", "~")
      if isinstance(found, dict) and step in found:
        found = found[step]
      elif isinstance(found, list) and step.isdecimal() and int(step[:9]) < len(found):
        found = found[int(step[:9])]
      else:
        return _NOTHING
    return found if isinstance(found, dict | bool) else _NOTHING

  def _named(self, name: str) -> Any:
    if self._anchors is None:
      self._anchors = {}
      left = [self._root]
      while left:
        part = left.pop()
        if isinstance(part, dict):
          for key in ("$anchor", "$id"):
            if isinstance(part.get(key), str):
              self._anchors.setdefault(part[key].removeprefix("#"), part)
          left.extend(part.values())
        elif isinstance(part, list):
          left.extend(part)
    return self._anchors.get(name, _NOTHING)


_NOTHING = object()
_WORDS = frozenset({"title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly"})
