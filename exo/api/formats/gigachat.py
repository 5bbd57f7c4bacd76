"""GigaChat 3.1: one JSON object after a token."""

from __future__ import annotations

from exo.api.formats.json_calls import OBJECT_HEADER, json_calls
from exo.api.formats.tool_format import ToolFormat

GIGACHAT = ToolFormat(
    "gigachat", ("<|function_call|>", ),
    "",
    json_calls,
    OBJECT_HEADER,
    before_name='{"name": "',
    before_arguments='", "arguments": ',
    after_arguments="}"
)
