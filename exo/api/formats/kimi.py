"""Kimi: K2 writes an id with the name in it and JSON arguments between tokens, K3 arguments between tags."""

from __future__ import annotations

import re

from exo.api.formats.json_calls import json_calls, no_calls
from exo.api.formats.tool_format import NAME, Tagged, ToolFormat

# the ids of calls count up; what is read by them is ours to choose, so a forced call may always be number 0
KIMI_K2 = ToolFormat(
    "kimi-k2", ("<|tool_calls_section_begin|>", ),
    "<|tool_calls_section_end|>",
    json_calls,
    re.compile(
        rf"\s*<\|tool_call_begin\|>\s*(?:functions\.)?({NAME})(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*(?=\{{)"
    ),
    again="<|tool_call_begin|>",
    closers=("<|tool_call_end|>", ),
    before_name="<|tool_call_begin|>functions.",
    before_arguments=":0<|tool_call_argument_begin|>",
    after_arguments="<|tool_call_end|>",
    sections=True,
    ends_thoughts=True
)
KIMI_K3 = ToolFormat(
    "kimi-k3", ("<|open|>tools<|sep|>", ),
    "<|close|>tools<|sep|>",
    no_calls,
    re.compile(rf'\s*<\|open\|>call tool="({NAME})"[^<]*<\|sep\|>'),
    Tagged(
        re.compile(r'\s*<\|open\|>argument key="(?P<key>[^"]*)"(?: type="(?P<type>\w+)")?[^<]*<\|sep\|>'),
        "<|close|>argument<|sep|>", "<|close|>call<|sep|>"
    ),
    again="<|open|>call "
)
