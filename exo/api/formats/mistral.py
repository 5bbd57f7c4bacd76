"""Mistral's two ways: a JSON list after one token, and since 2025 a name and arguments after each."""

from __future__ import annotations

import re

from exo.api.formats.json_calls import LIST_HEADER, json_calls
from exo.api.formats.tool_format import NAME, ToolFormat

MISTRAL = ToolFormat(
    "mistral", ("[TOOL_CALLS]", ),
    "",
    json_calls,
    LIST_HEADER,
    again="{",
    closers=(",", "]"),
    before_name='[{"name": "',
    before_arguments='", "arguments": ',
    after_arguments="}]",
    listed=True,
    id_length=9
)
# what the header does not match is a list: models that know both write it now and then
MISTRAL_NAMED = ToolFormat(
    "mistral-named", ("[TOOL_CALLS]", ),
    "",
    json_calls,
    re.compile(rf"\s*({NAME})\s*(?:\[CALL_ID\]\w+)?\s*\[ARGS\]\s*(?=\{{)"),
    before_arguments="[ARGS]",
    others=("[CALL_ID]", ),
    id_length=9
)
