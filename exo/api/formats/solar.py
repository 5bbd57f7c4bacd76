"""Solar Open: an id, a name and JSON arguments, each after a token."""

from __future__ import annotations

import re

from exo.api.formats.json_calls import json_calls
from exo.api.formats.tool_format import NAME, ToolFormat

SOLAR = ToolFormat(
    "solar", ("<|tool_call:begin|>", ),
    "<|tool_call:end|>",
    json_calls,
    re.compile(rf"[^<]*<\|tool_call:name\|>\s*({NAME})\s*<\|tool_call:args\|>\s*(?=\{{)"),
    before_name="0<|tool_call:name|>",
    before_arguments="<|tool_call:args|>",
    others=("<|tool_call:name|>", "<|tool_call:args|>")
)
