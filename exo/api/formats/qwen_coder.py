"""Qwen 3 Coder and 3.5, Nemotron 3, Step 3.5: a function and its parameters as tags with the name in them; Seed has tags of its own."""

from __future__ import annotations

import re

from exo.api.formats.json_calls import json_calls
from exo.api.formats.tool_format import NAME, Tagged, ToolFormat


def _functions(name: str, section: str) -> ToolFormat:
  """What is no function may be JSON: models that have seen much of that write it now and then."""
  return ToolFormat(
      name, (f"<{section}>", ),
      f"</{section}>",
      json_calls,
      re.compile(rf"\s*<function=({NAME})>"),
      Tagged(re.compile(r"\s*<parameter=(?P<key>[^>\n]+)>"), "</parameter>", "</function>", lines=True),
      again="<function="
  )


QWEN_CODER = _functions("qwen-coder", "tool_call")
SEED = _functions("seed", "seed:tool_call")
