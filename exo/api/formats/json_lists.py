"""JSON lists of calls after or between markers of the family's own; each differs in its markers only."""

from __future__ import annotations

import re

from exo.api.formats.json_calls import LIST_HEADER, json_calls
from exo.api.formats.tool_format import NAME, ToolFormat


def _listed(name: str, begins: tuple[str, ...], end: str, closers: tuple[str, ...] = ()) -> ToolFormat:
  return ToolFormat(
      name,
      begins,
      end,
      json_calls,
      LIST_HEADER,
      again="{",
      closers=(",", "]", *closers),
      before_name='[{"name": "',
      before_arguments='", "arguments": ',
      after_arguments="}]",
      listed=True
  )


GRANITE = _listed("granite", ("<|tool_call|>", ), "")  # 3
PHI = _listed("phi", ("<|tool_call|>", ), "", ("<|/tool_call|>", ))  # 4 mini
NEMOTRON = _listed("nemotron", ("<TOOLCALL>", ), "</TOOLCALL>")  # Nano 2
HUNYUAN = _listed("hunyuan", ("<tool_calls>", ), "</tool_calls>")  # A13B; MiniMax M1, Apriel

APERTUS = ToolFormat(
    "apertus", ("<|tools_prefix|>", ),
    "<|tools_suffix|>",
    json_calls,
    re.compile(rf'\s*\[?\s*\{{\s*"({NAME})"\s*:\s*(?=\{{)'),
    again="{",
    closers=(",", "]"),
    before_name='[{"',
    before_arguments='": ',
    after_arguments="}]",
    listed=True
)

COHERE = ToolFormat(
    "cohere", ("<|START_ACTION|>", ),
    "<|END_ACTION|>",
    json_calls,
    re.compile(
        rf'\s*\[?\s*\{{\s*(?:"tool_call_id"\s*:\s*"[^"]*"\s*,\s*)?"tool_name"\s*:\s*"({NAME})"\s*,'
        r'\s*"parameters"\s*:\s*(?=\{)'
    ),
    again="{",
    closers=(",", "]"),
    before_name='[{"tool_call_id": "0", "tool_name": "',
    before_arguments='", "parameters": ',
    after_arguments="}]",
    listed=True
)
