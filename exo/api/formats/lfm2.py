"""LFM2 and 2.5: Python calls between two tokens."""

from __future__ import annotations

from exo.api.formats.pythonic import python_calls
from exo.api.formats.tool_format import ToolFormat

LFM2 = ToolFormat("lfm2", ("<|tool_call_start|>", ), "<|tool_call_end|>", python_calls)
