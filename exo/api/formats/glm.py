"""GLM 4.5 to 5: the name alone, then keys and values between tags. Hunyuan's Hy3 writes so too, in sections."""

from __future__ import annotations

import re

from exo.api.formats.json_calls import json_calls
from exo.api.formats.tool_format import NAME, Tagged, ToolFormat

GLM = ToolFormat(
    "glm", ("<tool_call>", ),
    "</tool_call>",
    json_calls,
    re.compile(rf"\s*({NAME})\s*(?=<arg_key>|</tool_call>)"),
    Tagged(
        re.compile(r"\s*<arg_key>\s*(?P<key>[^<]*?)\s*</arg_key>\s*<arg_value>"),
        "</arg_value>",
        "</tool_call>",
    ),
    others=("<arg_key>", "</arg_key>", "<arg_value>")
)
_HY = ":opensource"
HY3 = ToolFormat(
    "hy3", (f"<tool_calls{_HY}>", ),
    f"</tool_calls{_HY}>",
    json_calls,
    re.compile(rf"\s*<tool_call{_HY}>\s*({NAME})\s*(?:<tool_sep{_HY}>|(?=<arg_key{_HY}>|</tool_call{_HY}>))"),
    Tagged(
        re.compile(rf"\s*<arg_key{_HY}>\s*(?P<key>[^<]*?)\s*</arg_key{_HY}>\s*<arg_value{_HY}>"),
        f"</arg_value{_HY}>",
        f"</tool_call{_HY}>",
    ),
    again=f"<tool_call{_HY}>",
    others=(f"<tool_sep{_HY}>", f"<arg_key{_HY}>", f"</arg_key{_HY}>", f"<arg_value{_HY}>")
)
