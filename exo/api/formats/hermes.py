"""Qwen 2.5 and 3, Hermes, Granite 4, SmolLM3, Ernie 4.5, and every template that we ask in our own words."""

from __future__ import annotations

from exo.api.formats.json_calls import OBJECT_HEADER, json_calls
from exo.api.formats.tool_format import ToolFormat

HERMES = ToolFormat(
    "hermes", ("<tool_call>", ),
    "</tool_call>",
    json_calls,
    OBJECT_HEADER,
    again="{",
    closers=(",", ),
    before_name='\n{"name": "',
    before_arguments='", "arguments": ',
    after_arguments="}\n"
)
