"""Tool calls of every family and thoughts, read from text that comes in pieces of any size."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from exo.api import tool_formats as formats
from exo.api.chat_parser import CallArguments, CallBegin, ChatParser, Content, Reasoning
from exo.api.grammars import Thinking
from exo.api.tool_formats import ToolFormat, tool_format

ARGUMENTS = {"city": "Paris", "days": 3, "note": "a \"b\" {c} </x>"}
WRITTEN = json.dumps(ARGUMENTS)
SIMPLE = {"city": "Paris", "days": 3}
SCHEMAS = {"get_weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}
THINK = Thinking("<think>", "</think>")


def read(parser: ChatParser, text: str, seed: int | None) -> tuple[str, str, list[tuple[str, Any]]]:
  """(content, thoughts, calls) of a text cut at random."""
  content, thoughts, calls = "", "", list[tuple[str, str]]()
  cuts = random.Random(seed)
  parts: list[Any] = []
  at = 0
  while at < len(text):
    size = len(text) if seed is None else cuts.randrange(1, 9)
    parts += parser.push(text[at:at + size])
    at += size
  for part in [*parts, *parser.finish()]:
    match part:
      case Content(t):
        content += t
      case Reasoning(t):
        thoughts += t
      case CallBegin(index, name):
        assert index == len(calls)
        calls.append((name, ""))
      case CallArguments(index, t):
        calls[index] = (calls[index][0], calls[index][1] + t)
  return content, thoughts, [(name, json.loads(arguments)) for name, arguments in calls]


CALL = '{"name": "get_weather", "arguments": ' + WRITTEN + "}"
CASES: list[tuple[ToolFormat, str, str, list[Any]]] = [
    (formats.HERMES, f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>", "Let me see.", [ARGUMENTS]),
    (formats.HERMES, f"<tool_call>{CALL}</tool_call>\n<tool_call>\n{CALL}\n</tool_call>", "", [ARGUMENTS] * 2),
    (
        formats.HERMES, '<tool_call>{"arguments": {"city": "Paris", "days": 3}, "name": "get_weather"}</tool_call>', "",
        [SIMPLE]
    ),
    (formats.HERMES, "<tool_call>no json</tool_call>", "<tool_call>no json</tool_call>", []),
    (formats.LLAMA3, '{"name": "get_weather", "parameters": ' + WRITTEN + "}", "", [ARGUMENTS]),
    (
        formats.LLAMA3, '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": ' + WRITTEN + "}", "",
        [ARGUMENTS]
    ),
    (
        formats.LLAMA3,
        '{"name": "get_weather", "parameters": ' + WRITTEN + '}; {"name": "get_weather", "parameters": {}}', "",
        [ARGUMENTS, {}]
    ),
    (formats.LLAMA3, '{"temperature": 21, "unit": "c"}', '{"temperature": 21, "unit": "c"}', []),
    (formats.MISTRAL, f"[TOOL_CALLS][{CALL}, {CALL}]", "", [ARGUMENTS] * 2),
    (formats.MISTRAL, f"[TOOL_CALLS] [{CALL}]", "", [ARGUMENTS]),
    (
        formats.MISTRAL_NAMED, f"[TOOL_CALLS]get_weather[ARGS]{WRITTEN}[TOOL_CALLS]get_weather[ARGS]{{}}", "",
        [ARGUMENTS, {}]
    ),
    (formats.MISTRAL_NAMED, f"[TOOL_CALLS]get_weather[CALL_ID]abc123xyz[ARGS]{WRITTEN}", "", [ARGUMENTS]),
    (formats.FUNCTIONARY, f"<function=get_weather>{WRITTEN}</function>", "", [ARGUMENTS]),
    (
        formats.QWEN_CODER, "Sure.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>", "Sure.", [SIMPLE]
    ),
    (
        formats.FUNCTION_GEMMA,
        "<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:3}<end_function_call>", "", [SIMPLE]
    ),
    (formats.GEMMA, '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:3}<tool_call|>', "", [SIMPLE]),
]


@pytest.mark.parametrize(("form", "text", "content", "arguments"), CASES)
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_25_families(form: ToolFormat, text: str, content: str, arguments: list[Any], seed: int | None) -> None:
  got, thoughts, calls = read(ChatParser(None, form, SCHEMAS), text, seed)
  assert (got, thoughts) == (content, "") and calls == [("get_weather", a) for a in arguments]


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_27_thoughts_stand_apart(seed: int | None) -> None:
  assert read(ChatParser(THINK), "<think>\nhm, 2 < 3\n</think>\n\nFour.", seed) == ("Four.", "\nhm, 2 < 3\n", [])
  opened = Thinking("<think>", "</think>", open_already=True)
  assert read(ChatParser(opened), "hm\n</think>\n\nFour <think>.", seed) == ("Four <think>.", "hm\n", [])
  assert read(ChatParser(THINK), "Four <b>.", seed) == ("Four <b>.", "", [])
  assert read(ChatParser(opened), "never ends", seed) == ("", "never ends", [])
  both = ChatParser(THINK, formats.HERMES, SCHEMAS)
  assert read(both, f"<think>I call</think>\n<tool_call>\n{CALL}\n</tool_call>",
              seed) == ("", "I call", [("get_weather", ARGUMENTS)])


def test_25_the_family_is_known_by_the_template() -> None:
  for mark, form in (("<tool_call>", formats.HERMES), ("[TOOL_CALLS]", formats.MISTRAL),
                     ("[TOOL_CALLS] [ARGS]", formats.MISTRAL_NAMED), ("<|python_tag|>", formats.LLAMA3),
                     ("<function=", formats.FUNCTIONARY), ("<tool_call><parameter=", formats.QWEN_CODER),
                     ("<start_function_call>", formats.FUNCTION_GEMMA), ("<|tool_call>", formats.GEMMA)):
    assert tool_format("{% if tools %}" + mark + "{% endif %}") is form
  assert tool_format("{{ messages }}") is None and tool_format(None) is None
