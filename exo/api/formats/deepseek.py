"""DeepSeek: JSON arguments in a fence (V3, R1) or bare (V3.1) between tokens, and tags of its own since V3.2."""

from __future__ import annotations

import re

from exo.api.formats.invokes import invokes
from exo.api.formats.json_calls import json_calls
from exo.api.formats.tool_format import NAME, ToolFormat

_SEP = "<｜tool▁sep｜>"
# each of them now and then writes as the other does
_HEADER = re.compile(
    rf"\s*(?:<｜tool▁call▁begin｜>)?\s*(?:function{_SEP}({NAME})\s*```(?:json)?\s*|({NAME})\s*{_SEP}\s*)(?=\{{)"
)


def _tokens(name: str, before_name: str, before_arguments: str, after_arguments: str) -> ToolFormat:
  return ToolFormat(
      name, ("<｜tool▁calls▁begin｜>", ),
      "<｜tool▁calls▁end｜>",
      json_calls,
      _HEADER,
      again="<｜tool▁call▁begin｜>",
      closers=("```", "<｜tool▁call▁end｜>"),
      before_name="<｜tool▁call▁begin｜>" + before_name,
      before_arguments=before_arguments,
      after_arguments=after_arguments + "<｜tool▁call▁end｜>",
      sections=True,
      others=(_SEP, )
  )


DEEPSEEK_V3 = _tokens("deepseek-v3", f"function{_SEP}", "\n```json\n", "\n```")
DEEPSEEK_V31 = _tokens("deepseek-v3.1", "", _SEP, "")
DEEPSEEK_V32 = invokes("deepseek-v3.2", "｜DSML｜function_calls", "｜DSML｜")
DEEPSEEK_V4 = invokes("deepseek-v4", "｜DSML｜tool_calls", "｜DSML｜")
