"""Which format of tool calls a chat template belongs to: the first whose marks it bears."""

from __future__ import annotations

from exo.api.formats.deepseek import DEEPSEEK_V3, DEEPSEEK_V4, DEEPSEEK_V31, DEEPSEEK_V32
from exo.api.formats.functionary import FUNCTIONARY
from exo.api.formats.gemma import FUNCTION_GEMMA, GEMMA
from exo.api.formats.gigachat import GIGACHAT
from exo.api.formats.glm import GLM, HY3
from exo.api.formats.harmony import HARMONY
from exo.api.formats.hermes import HERMES
from exo.api.formats.invokes import MUSE
from exo.api.formats.json_lists import APERTUS, COHERE, GRANITE, HUNYUAN, NEMOTRON, PHI
from exo.api.formats.kimi import KIMI_K2, KIMI_K3
from exo.api.formats.lfm2 import LFM2
from exo.api.formats.llama3 import LLAMA3
from exo.api.formats.minimax import MINIMAX_M2
from exo.api.formats.mistral import MISTRAL, MISTRAL_NAMED
from exo.api.formats.pythonic import PYTHONIC
from exo.api.formats.qwen_coder import QWEN_CODER, SEED
from exo.api.formats.solar import SOLAR
from exo.api.formats.tool_format import ToolFormat

# all marks of a line must be there; what is written in many templates comes late
_MARKS: tuple[tuple[tuple[str, ...], ToolFormat], ...] = (
    (("<|channel|>", "<|message|>"), HARMONY),
    (("<start_function_call>", ), FUNCTION_GEMMA),
    (("<|tool_call>", ), GEMMA),
    (("<|tool_calls_section_begin|>", ), KIMI_K2),
    (("<|open|>", "<|sep|>", "argument"), KIMI_K3),
    (("｜DSML｜", "tool_calls>"), DEEPSEEK_V4),
    (("｜DSML｜", ), DEEPSEEK_V32),
    (("<｜tool▁calls▁begin｜>", "```"), DEEPSEEK_V3),
    (("<｜tool▁calls▁begin｜>", ), DEEPSEEK_V31),
    (("<minimax:tool_call>", ), MINIMAX_M2),
    (("<atem:function_calls>", ), MUSE),
    (("<seed:tool_call>", ), SEED),
    (("<arg_key{}>", ":opensource"), HY3),
    (("<arg_key>", ), GLM),
    (("[ARGS]", ), MISTRAL_NAMED),
    (("[TOOL_CALLS]", ), MISTRAL),
    (("<|START_ACTION|>", ), COHERE),
    (("<|tool_call:begin|>", ), SOLAR),
    (("<|tools_prefix|>", ), APERTUS),
    (("<|tool_call_start|>", ), LFM2),
    (("<|tool_list_start|>", ), LFM2),
    (("List of tools: [", ), LFM2),
    (("<TOOLCALL>", ), NEMOTRON),
    (("<|function_call|>", ), GIGACHAT),
    (("<parameter=", ), QWEN_CODER),
    (("<|tool_call|>", ), GRANITE),
    (("<|tool|>", "<|/tool|>"), PHI),
    (("<tool_calls>", ), HUNYUAN),
    (("<tool_call>", ), HERMES),
    (("<function=", ), FUNCTIONARY),
    (("func_name1(", ), PYTHONIC),
    (("<|python_start|>", "[func"), PYTHONIC),
    (("<|python_tag|>", ), LLAMA3),
    (('"parameters":', ), LLAMA3),
)


def tool_format(template: str | None) -> ToolFormat | None:
  """The format of the model with this chat template; None when the template knows nothing of tools."""
  if not template or "tools" not in template:
    return None
  return next((form for marks, form in _MARKS if all(mark in template for mark in marks)), HERMES)


def is_harmony(template: str | None) -> bool:
  """Whether answers come as messages in channels, with tools or without."""
  return bool(template) and all(mark in str(template) for mark in _MARKS[0][0])
