"""Llama 3.1 and later: a JSON object with `parameters`, mostly without any marker."""

from __future__ import annotations

from exo.api.formats.json_calls import OBJECT_HEADER, json_calls
from exo.api.formats.tool_format import ToolFormat

LLAMA3 = ToolFormat(
    "llama3", ("<|python_tag|>", ),
    "",
    json_calls,
    OBJECT_HEADER,
    again="{",
    closers=(";", ),
    bare="{",
    before_name='{"name": "',
    before_arguments='", "parameters": ',
    after_arguments="}"
)
