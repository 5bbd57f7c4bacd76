"""`<invoke name="NAME"><parameter name="KEY">VALUE</parameter>…</invoke>`, which several families write with names of their own."""

from __future__ import annotations

import re

from exo.api.formats.json_calls import no_calls
from exo.api.formats.tool_format import NAME, Tagged, ToolFormat


def invokes(name: str, section: str, prefix: str) -> ToolFormat:
  """Between `<section>` and `</section>`, with `prefix` before the names of the tags.

  An attribute `string` of a parameter says whether its value is the text or JSON (DeepSeek).
  """
  key = rf'\s*<{prefix}parameter name="?(?P<key>[^">]+)"?(?: string="(?P<type>\w+)")?\s*>'
  return ToolFormat(
      name, (f"<{section}>", ),
      f"</{section}>",
      no_calls,
      re.compile(rf'\s*<{prefix}invoke name="?({NAME})"?\s*>'),
      Tagged(re.compile(key), f"</{prefix}parameter>", f"</{prefix}invoke>"),
      again=f"<{prefix}invoke",
      others=(prefix, )
  )


MUSE = invokes("muse", "atem:function_calls", "atem:")
