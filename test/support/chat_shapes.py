"""What the published chat templates say that an answer with a call looks like: one small text for each format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exo.api.chat_parser import ChatParser
from exo.api.chat_parts import AnswerParser, CallArguments, CallBegin, Content, Part, Reasoning
from exo.api.formats.tool_format import ToolFormat
from exo.api.harmony_parser import HarmonyParser
from exo.api.thinking import Thinking
from exo.api.tool_formats import tool_format

SCHEMAS: dict[str, Any] = {
    "get_weather": {
        "type": "object", "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}, "zip": {"type": "string"},
            "exact": {"type": "boolean"}, "tags": {"type": "array", "items": {"type": "string"}}
        }
    }, "now": {"type": "object", "properties": {}}
}
PARIS: dict[str, Any] = {"city": "Paris", "days": 3}
THINK = Thinking("<think>", "</think>")


@dataclass(frozen=True)
class Shape:
  """`template` is the part of a chat template by which the format is known; an answer is `thoughts`, `before`, `calls`, `after`.

  `calls` are two calls, of `get_weather` with `PARIS` and of `now` without arguments.
  """
  name: str
  template: str
  calls: str
  thinking: Thinking | None = THINK
  thoughts: str = "<think>\nhm, 2 < 3\n</think>\n\n"
  before: str = "Let me see."
  after: str = "\nThat is it."

  @property
  def form(self) -> ToolFormat:
    form = tool_format("{% if tools %}" + self.template + "{% endif %}")
    assert form is not None
    return form

  def parser(self) -> AnswerParser:
    return HarmonyParser(SCHEMAS) if self.name == "harmony" else ChatParser(self.thinking, self.form, SCHEMAS)

  def __str__(self) -> str:
    return self.name


def read(parser: AnswerParser, pieces: list[str]) -> tuple[str, str, list[tuple[str, str]]]:
  """(content, thoughts, calls as names and JSON) of an answer that comes in these pieces."""
  content, thoughts, calls = "", "", list[tuple[str, str]]()
  parts: list[Part] = []
  for piece in pieces:
    parts += parser.push(piece)
  for part in [*parts, *parser.finish()]:
    match part:
      case Content(text):
        content += text
      case Reasoning(text):
        thoughts += text
      case CallBegin(index, name):
        assert index == len(calls)
        calls.append((name, ""))
      case CallArguments(index, text):
        assert index == len(calls) - 1
        calls[index] = (name, calls[index][1] + text)
  return content, thoughts, calls


_WEATHER = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
_NOW = '{"name": "now", "arguments": {}}'
_LIST = f"[{_WEATHER}, {_NOW}]"


def _invokes(section: str, prefix: str, typed: bool = False) -> str:
  text, number = (' string="true"', ' string="false"') if typed else ("", "")
  return (
      f'<{section}>\n<{prefix}invoke name="get_weather">\n<{prefix}parameter name="city"{text}>Paris</{prefix}parameter>\n'
      f'<{prefix}parameter name="days"{number}>3</{prefix}parameter>\n</{prefix}invoke>\n<{prefix}invoke name="now">\n'
      f"</{prefix}invoke>\n</{section}>"
  )


_FUNCTIONS = "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n"
_KEYS = "<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
_HARMONY_CALL = "<|start|>assistant<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}<|call|>"
_K3 = (
    '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|><|open|>argument key="city" type="string"<|sep|>Paris'
    '<|close|>argument<|sep|><|open|>argument key="days" type="number"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|>'
    '<|open|>call tool="now" index="2"<|sep|><|close|>call<|sep|><|close|>tools<|sep|>'
)

SHAPES = [
    Shape(
        "harmony",
        "<|channel|>analysis<|message|>",
        _HARMONY_CALL.format("get_weather", '{"city": "Paris", "days": 3}') + _HARMONY_CALL.format("now", "{}"),
        thoughts="<|channel|>analysis<|message|>\nhm, 2 < 3\n<|end|>",
        before="<|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|>",
        after="<|start|>assistant<|channel|>final<|message|>That is it.<|return|>"
    ),
    Shape("hermes", "<tool_call>", f"<tool_call>\n{_WEATHER}\n</tool_call>\n<tool_call>\n{_NOW}\n</tool_call>"),
    Shape(
        "qwen-coder", "<tool_call><parameter=",
        f"<tool_call>\n{_FUNCTIONS}</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>"
    ),
    Shape(
        "seed",
        "<seed:tool_call>",
        f"<seed:tool_call>\n{_FUNCTIONS}</seed:tool_call>\n<seed:tool_call>\n<function=now>\n</function>\n</seed:tool_call>",
        thinking=Thinking("<seed:think>", "</seed:think>"),
        thoughts="<seed:think>\nhm, 2 < 3\n</seed:think>"
    ),
    Shape("glm", "<arg_key>", f"<tool_call>get_weather\n{_KEYS}</tool_call>\n<tool_call>now\n</tool_call>"),
    Shape("glm", "<arg_key>", f"<tool_call>get_weather{_KEYS}</tool_call><tool_call>now</tool_call>".replace("\n", "")),
    Shape(
        "hy3",
        "<arg_key{}> :opensource",
        (
            f"<tool_calls>\n<tool_call>get_weather<tool_sep>\n{_KEYS}</tool_call>\n<tool_call>now<tool_sep>\n</tool_call>\n"
            "</tool_calls>"
        ).replace(">", ":opensource>"),
        thinking=Thinking("<think:opensource>", "</think:opensource>"),
        thoughts="<think:opensource>\nhm, 2 < 3\n</think:opensource>"
    ),
    Shape(
        "kimi-k2", "<|tool_calls_section_begin|>",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Paris", "days": 3}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}'
        "<|tool_call_end|><|tool_calls_section_end|>"
    ),
    Shape(
        "kimi-k3",
        "<|open|><|sep|>argument",
        _K3,
        thinking=Thinking(
            "<|open|>think<|sep|>",
            "<|close|>think<|sep|>",
            wrap=("<|open|>response<|sep|>", "<|close|>response<|sep|>")
        ),
        thoughts="<|open|>think<|sep|>\nhm, 2 < 3\n<|close|>think<|sep|>",
        before="<|open|>response<|sep|>Let me see.<|close|>response<|sep|>"
    ),
    Shape("minimax-m2", "<minimax:tool_call>", _invokes("minimax:tool_call", "")),
    Shape("muse", "<atem:function_calls>", _invokes("atem:function_calls", "atem:")),
    Shape("deepseek-v3.2", "｜DSML｜ function_calls>", _invokes("｜DSML｜function_calls", "｜DSML｜", typed=True)),
    Shape("deepseek-v4", "｜DSML｜ tool_calls>", _invokes("｜DSML｜tool_calls", "｜DSML｜", typed=True)),
    Shape(
        "deepseek-v3.1", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Paris", "days": 3}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜>"
    ),
    Shape(
        "deepseek-v3", "<｜tool▁calls▁begin｜>```json",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Paris", "days": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n'
        "{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    Shape(
        "mistral-named",
        "[TOOL_CALLS][ARGS]",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}[TOOL_CALLS]now[CALL_ID]abc123xyz[ARGS]{}',
        thinking=Thinking("[THINK]", "[/THINK]"),
        thoughts="[THINK]\nhm, 2 < 3\n[/THINK]"
    ),
    Shape("mistral", "[TOOL_CALLS]", f"[TOOL_CALLS] {_LIST}"),
    Shape(
        "gemma",
        "<|tool_call>",
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|><|tool_call>call:now{}<tool_call|>',
        thinking=Thinking("<|channel>thought", "<channel|>"),
        thoughts="<|channel>thought\nhm, 2 < 3\n<channel|>"
    ),
    Shape(
        "function-gemma", "<start_function_call>",
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:3}<end_function_call><start_function_call>"
        "call:now{}<end_function_call>"
    ),
    Shape(
        "lfm2", "<|tool_list_start|>",
        "<|tool_call_start|>[get_weather(city=\"Paris\", days=3), now()]<|tool_call_end|>"
    ),
    Shape(
        "pythonic", "[func_name1(", '[get_weather(city="Paris", days=3), now()]', before="", thinking=None, thoughts=""
    ),
    Shape(
        "llama3",
        "<|python_tag|>",
        '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}; {"name": "now", "parameters": {}}',
        before="",
        thinking=None,
        thoughts=""
    ),
    Shape("granite", "<|tool_call|>", f"<|tool_call|>{_LIST}"),
    Shape("phi", "<|tool|><|/tool|>", f"<|tool_call|>{_LIST}<|/tool_call|>"),
    Shape("nemotron", "<TOOLCALL>", f"<TOOLCALL>{_LIST}</TOOLCALL>"),
    Shape(
        "hunyuan",
        "<tool_calls>",
        f"<tool_calls>{_LIST}</tool_calls>",
        thinking=Thinking("<think>", "</think>", wrap=("<answer>", "</answer>")),
        before="<answer>\nLet me see.\n</answer>"
    ),
    Shape("hunyuan", "<tool_calls>", f"<tool_calls>\n{_WEATHER}\n{_NOW}\n</tool_calls>"),
    Shape(
        "cohere",
        "<|START_ACTION|>", '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": '
        '{"city": "Paris", "days": 3}},\n    {"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
        thinking=Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
        thoughts="<|START_THINKING|>\nhm, 2 < 3\n<|END_THINKING|>"
    ),
    Shape(
        "apertus",
        "<|tools_prefix|>",
        '<|tools_prefix|>[{"get_weather": {"city": "Paris", "days": 3}}, {"now": {}}]<|tools_suffix|>',
        thinking=Thinking("<|inner_prefix|>", "<|inner_suffix|>"),
        thoughts="<|inner_prefix|>\nhm, 2 < 3\n<|inner_suffix|>"
    ),
    Shape(
        "solar", "<|tool_call:begin|>",
        '<|tool_call:begin|>1<|tool_call:name|>get_weather<|tool_call:args|>{"city": "Paris", "days": 3}<|tool_call:end|>'
        "<|tool_call:begin|>2<|tool_call:name|>now<|tool_call:args|>{}<|tool_call:end|>"
    ),
    Shape("gigachat", "<|function_call|>", f"<|function_call|>{_WEATHER}<|function_call|>{_NOW}"),
    Shape(
        "functionary", "<function=",
        '<function=get_weather>{"city": "Paris", "days": 3}</function><function=now>{}</function>'
    ),
]
