"""Functionary 3.1: a tag with the name around JSON arguments."""

from __future__ import annotations

import re

from exo.api.formats.json_calls import objects
from exo.api.formats.tool_format import NAME, Call, Schemas, ToolFormat


def _calls(text: str, _: Schemas) -> list[Call]:
  """`NAME>{…}`; without arguments nothing may follow."""
  name, _sep, body = text.partition(">")
  found = objects(body) if body.strip() else [{}]
  return [(name.strip(), found[0])] if re.fullmatch(NAME, name.strip()) and len(found) == 1 else []


FUNCTIONARY = ToolFormat(
    "functionary", ("<function=", ), "</function>", _calls, re.compile(rf"({NAME})>\s*(?=\{{)"), before_arguments=">"
)
