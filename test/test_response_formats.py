"""Line 9: the tool calls and thoughts of every family, whole and in pieces, and what only looks like them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.api import tool_formats as formats
from exo.api.chat_parser import ChatParser
from exo.api.formats.pythonic import python_calls
from exo.api.formats.values import typed
from exo.api.harmony_parser import HarmonyParser
from exo.api.thinking import Thinking
from exo.api.tool_formats import tool_format
from test.support.chat_shapes import PARIS, SCHEMAS, SHAPES, Shape, read

CALLS = [("get_weather", PARIS), ("now", {})]


def loaded(calls: list[tuple[str, str]]) -> list[tuple[str, Any]]:
  return [(name, json.loads(arguments)) for name, arguments in calls]


def cut(text: str, rng: random.Random, most: int = 9) -> list[str]:
  pieces, at = list[str](), 0
  while at < len(text):
    size = rng.randrange(1, most)
    pieces.append(text[at:at + size])
    at += size
  return pieces


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_line_9_each_format_is_known_and_read_whole_and_in_pieces(shape: Shape) -> None:
  assert shape.form.name == shape.name
  text = shape.thoughts + shape.before + shape.calls + shape.after
  between = "\n\n" if shape.name == "harmony" else ""
  content = "Let me see." * bool(shape.before) + between + "That is it."
  thoughts = "\nhm, 2 < 3\n" * bool(shape.thoughts)
  rng = random.Random(9)
  for pieces in ([text], list(text), *(cut(text, rng) for _ in range(5)), *([text[:i], text[i:]]
                                                                            for i in range(len(text)))):
    got = read(shape.parser(), pieces)
    assert (got[0], got[1], loaded(got[2])) == (content, thoughts, CALLS), pieces


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_line_9_calls_alone_and_texts_alone(shape: Shape) -> None:
  parser = shape.parser()
  begin = "" if shape.name != "harmony" else "<|channel|>final<|message|>"
  assert loaded(read(parser, list(shape.calls))[2]) == CALLS and parser.called
  for text in ("A plain text.", "2 < 3, [a list] and {a brace}", "Say <b>", "", "to= < <| [", "日本語 {"):
    parser = shape.parser()
    assert read(parser, list(begin + text)) == (text, "", []) and not parser.called


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_line_9_a_cut_answer_loses_nothing(shape: Shape) -> None:
  """At every place: what has come is content, thoughts or the beginning of a call, the same in any pieces."""
  text = shape.thoughts + shape.before + shape.calls
  for end in range(len(text)):
    content, thoughts, calls = read(shape.parser(), list(text[:end]))
    assert read(shape.parser(), [text[:end]]) == (content, thoughts, calls)
    given = content + thoughts + json.dumps(calls)
    for word in ("hm, 2 < 3", "Let me see", "Paris"):
      if word in text[:end]:
        assert word in given, (text[:end], given)
    assert [name for name, _ in calls] == ["get_weather", "now"][:len(calls)]
    for name, arguments in calls[:-1]:
      assert json.loads(arguments) == dict(CALLS)[name]
    if calls and text[:end].endswith(("Pa", "Par")) and shape.form.can_force:
      assert calls[-1][1].startswith('{"city": "P')  # arguments come before a call is whole


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_line_9_calls_of_other_tools_and_broken_ones_are_text(shape: Shape) -> None:
  other = shape.calls.replace("get_weather", "get_money").replace("now", "never")
  for text in (other, shape.calls.replace("get_weather", "get weather").replace("now", "n!w")):
    for pieces in ([text], list(text)):
      content, thoughts, calls = read(shape.parser(), pieces)
      assert not calls and not thoughts
      plain = content.replace("\n\n", "") if shape.name == "harmony" else content
      for mark in ("<|start|>assistant", "<|call|>") if shape.name == "harmony" else ():
        text, plain = text.replace(mark, ""), plain.replace(mark, "")
      assert "".join(plain.split()) == "".join(text.split())


WORDS = ("alpha", "beta", "gamma", "delta")


def fragments(shape: Shape) -> list[str]:
  """Parts of the format and words, of which texts are made that are nearly answers of it."""
  form = shape.form
  tags = [form.tagged.close, form.tagged.done] if form.tagged is not None else []
  marks = [
      *form.begins, form.end, form.again, *form.closers, *tags, *form.others, form.before_name, form.before_arguments
  ]
  thinking = [shape.thinking.begin, shape.thinking.end, *shape.thinking.wrap] if shape.thinking is not None else []
  halves = [mark[:len(mark) // 2] for mark in marks]
  texts = [
      *WORDS, " ", "\n", "{", "}", "[", "]", '"', ",", ":", "get_weather", "now", '{"city": "Paris"}', "call:", "{}"
  ]
  harmony = ["<|message|>", "<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "to=functions.now"]
  more = harmony if shape.name == "harmony" else ["<arg_key>days</arg_key><arg_value>", "<parameter=days>", shape.calls]
  return [text for text in dict.fromkeys([*marks, *thinking, *halves, *texts, *more]) if text]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(max_examples=120, deadline=None, derandomize=True)
@given(data=st.data())
def test_line_9_any_text_in_any_pieces_is_the_same_and_whole(shape: Shape, data: st.DataObject) -> None:
  text = "".join(data.draw(st.lists(st.sampled_from(fragments(shape)), max_size=16)))
  whole = read(shape.parser(), [text])
  assert read(shape.parser(), list(text)) == whole
  pieces = cut(text, random.Random(data.draw(st.integers(0, 99))))
  assert read(shape.parser(), pieces) == whole
  if shape.name != "harmony":  # whose headers are no text
    given = whole[0] + whole[1] + json.dumps(whole[2])
    for word in WORDS:
      if not any(calls for calls in whole[2]):
        assert given.count(word) == text.count(word), (text, whole)


def test_line_9_values_are_what_the_schema_says() -> None:
  for text, schema, value in (
      ("3", {"type": "integer"}, 3), ("3.0", {"type": "integer"}, 3), ("3", {"type": "number"}, 3),
      ("3.5", {"type": "number"}, 3.5), ("3", {"type": "string"}, "3"), ("true", {"type": "string"}, "true"),
      ("true", {"type": "boolean"}, True), ("False", {"type": "boolean"}, False), ("null", {"type": ["string", "null"]}, None),
      ("null", {"type": "string"}, "null"), ("12", {"type": ["string", "null"]}, "12"),
      ("12", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 12), ("None", {"type": "integer", "nullable": True}, None),
      ("[1, 2]", {"type": "array"}, [1, 2]), ("['a', True]", {"type": "array"}, ["a", True]),
      ('{"a": 1}', {"type": "object"}, {"a": 1}), ("{'a': None}", {"type": "object"}, {"a": None}), ("x y", {}, "x y"),
      ("7", {}, 7), ("7", {"enum": ["7", "8"]}, "7"), ("7", {"enum": [7, 8]}, 7), ("seven", {"type": "integer"}, "seven"),
      ("NaN", {"type": "number"}, "NaN"), ("1e999", {"type": "number"}, "1e999"), ("9" * 5000, {"type": "integer"}, "9" * 5000),
      ("[" * 9000, {"type": "array"}, "[" * 9000), ("3.5", {"type": "integer"}, "3.5"), ("1", {"type": "boolean"}, "1"),
      ("2", {"const": 2}, 2), ("[1]", {"type": "object"}, "[1]"), ("7", {"type": ["integer", "string"]}, 7), ("x", None, "x")
  ):  # yapf: disable
    assert typed(text, schema) == value and type(typed(text, schema)) is type(value), (text, schema)


@pytest.mark.parametrize(
    "form", [formats.GLM, formats.QWEN_CODER, formats.MINIMAX_M2, formats.KIMI_K3], ids=lambda f: f.name
)
def test_line_9_bare_values_are_typed_and_texts_come_as_they_are_written(form: Any) -> None:
  values = {
      "city": 'Köln "am" Rhein\n\\ {x} </p> & <b>', "zip": "01234", "days": 3, "exact": True, "tags": ["a", "b"],
      "free": 7
  }
  written = {
      key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
      for key, value in values.items()
  }
  text = {
      "glm": "<tool_call>get_weather" +
      "".join(f"<arg_key>{k}</arg_key><arg_value>{v}</arg_value>"
              for k, v in written.items()) + "</tool_call>", "qwen-coder": "<tool_call>\n<function=get_weather>\n" +
      "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in written.items()) + "</function>\n</tool_call>",
      "minimax-m2": '<minimax:tool_call>\n<invoke name="get_weather">\n' +
      "".join(f'<parameter name="{k}">{v}</parameter>\n'
              for k, v in written.items()) + "</invoke>\n</minimax:tool_call>",
      "kimi-k3": '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|>' + "".join(
          f'<|open|>argument key="{k}" type="{"string" if isinstance(values[k], str) else "object"}"<|sep|>{v}'
          "<|close|>argument<|sep|>" for k, v in written.items()
      ) + "<|close|>call<|sep|><|close|>tools<|sep|>"
  }[form.name]
  for pieces in ([text], list(text), cut(text, random.Random(1))):
    content, _, calls = read(ChatParser(None, form, SCHEMAS), pieces)
    assert not content and loaded(calls) == [("get_weather", values)]
  parser = ChatParser(None, form, SCHEMAS)
  begun = parser.push(text[:text.index("Rhein")])
  assert '\\"am\\"' in "".join(getattr(part, "text", "") for part in begun)  # long texts are not waited for


def test_line_9_lines_of_a_text_stay_as_they_are() -> None:
  for value in ("", "\n", "a", "\na\n", "a\n\n", "  a", "</parameter", "</param>\n"):
    text = f"<tool_call>\n<function=get_weather>\n<parameter=city>\n{value}\n</parameter>\n</function>\n</tool_call>"
    for pieces in ([text], list(text)):
      _, _, calls = read(ChatParser(None, formats.QWEN_CODER, SCHEMAS), pieces)
      assert loaded(calls) == [("get_weather", {"city": value})]


def test_line_9_what_models_write_beside_the_published_form() -> None:
  """A forgotten end, JSON in the place of tags, calls in the middle of thoughts, the other form of the same family."""
  weather = '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}'
  for form, text, content in (
      (formats.QWEN_CODER, f"<tool_call>\n{weather}\n</tool_call>", ""),
      (formats.QWEN_CODER, "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>3"
       "</parameter>\n</tool_call>\nDone", "Done"),
      (formats.QWEN_CODER, "<tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter><parameter=days>3</parameter>\n",
       ""),
      (formats.HERMES, f"<tool_call>\n{weather}\nI wait.", "I wait."),
      (formats.HERMES, f"<tool_call>so</tool_call>\n<tool_call>{weather}</tool_call>", "<tool_call>so</tool_call>"),
      (formats.HERMES, f"<tool_call> or <tool_call>{weather}</tool_call>", "<tool_call> or"),
      (formats.HERMES, '<tool_call>{"id": 1, "function": ' + weather + "}</tool_call>", ""),
      (formats.HERMES, '<tool_call>{"name": "get_weather", "arguments": "' + json.dumps(PARIS).replace('"', '\\"') +
       '"}</tool_call>', ""),
      (formats.HERMES, '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}, "id": "x"}</tool_call>',
       ""),
      (formats.DEEPSEEK_V3, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>" + json.dumps(PARIS) +
       "<｜tool▁call▁end｜><｜tool▁calls▁end｜>", ""),
      (formats.KIMI_K2, "<|tool_calls_section_begin|><|tool_call_begin|>get_weather<|tool_call_argument_begin|>" +
       json.dumps(PARIS) + "<|tool_call_end|>", ""),
      (formats.MISTRAL_NAMED, f"[TOOL_CALLS][{weather}]", ""),
      (formats.LFM2, f"<|tool_call_start|>[{weather}]<|tool_call_end|>", ""),
      (formats.LLAMA3, '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}', ""),
  ):  # yapf: disable
    for pieces in ([text], list(text)):
      got, _, calls = read(ChatParser(None, form, SCHEMAS), pieces)
      assert (got.strip(), loaded(calls)) == (content, CALLS[:1]), (form.name, text)
  thoughts = Thinking("<think>", "</think>", open_already=True)
  shape = next(shape for shape in SHAPES if shape.name == "kimi-k2")
  got = read(ChatParser(thoughts, formats.KIMI_K2, SCHEMAS), list("I call" + shape.calls))
  assert (got[0], got[1], loaded(got[2])) == ("", "I call", CALLS)


def test_line_9_harmony_in_all_its_ways() -> None:
  call = '{"city": "Paris", "days": 3}'
  for text, content, thoughts, calls in (
      (f" to=functions.get_weather<|channel|>commentary json<|message|>{call}<|call|>", "", "", CALLS[:1]),
      (f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>"
       f"{call}", "", "hm", CALLS[:1]),
      ("<|channel|>commentary to=functions.now<|message|><|call|>", "", "", CALLS[1:]),
      ("<|channel|>analysis<|message|>hm<|channel|>final<|message|>So.", "So.", "hm", []),
      ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>", "", "a\n\nb", []),
      ("<|channel|>analysis<|message|>never ends", "", "never ends", []),
      ("<|channel|>analysis to=python code<|message|>print(1)<|call|>",
       "<|channel|>analysis to=python code<|message|>print(1)", "", []),
      ("<|channel|>commentary to=functions.now<|message|>no json<|end|>",
       "<|channel|>commentary to=functions.now<|message|>no json", "", []),
      ('{"a": 1}', '{"a": 1}', "", []), ("<|channel|>fin", "", "", []), ("  plain", "  plain", "", []),
      ("<|channel|>commentary to=functions.now<|message|>{} and more<|call|>", "and more", "", CALLS[1:]),
      ("<|channel|>" + "x" * 900, "<|channel|>" + "x" * 900, "", []),
  ):  # yapf: disable
    for pieces in ([text], list(text)):
      got = read(HarmonyParser(SCHEMAS), pieces)
      assert (got[0], got[1], loaded(got[2])) == (content, thoughts, calls), text
  parser = HarmonyParser({})
  assert "functions.now" in read(parser, ["<|channel|>commentary to=functions.now<|message|>{}<|call|>"])[0]
  parser = HarmonyParser(SCHEMAS)
  parser.push("<|channel|>analysis<|message|>hm")
  assert parser.thinking and not parser.called


def test_line_9_answers_may_stand_between_markers() -> None:
  thinking = Thinking("<think>", "</think>", wrap=("<response>", "</response>"))
  for text, content in (("<think>hm</think>\n<response>\nFour.\n</response>\n",
                         "Four."), ("<think>hm</think>Four.", "Four."), ("<think>hm</think><resp", "<resp"),
                        ("<think>hm</think><response>a </response> b", "ab")):
    for pieces in ([text], list(text)):
      assert read(ChatParser(thinking), pieces) == (content, "hm", [])


def test_line_9_python_is_read_and_never_run() -> None:
  for text, calls in (
      ("[f(a=1, b='x', c=[1, 2.5], d={'k': None}, e=True, g=-3)]",
       [("f", {"a": 1, "b": "x", "c": [1, 2.5], "d": {"k": None}, "e": True, "g": -3})]),
      ("[f(a=true, b=null), g.h()]", [("f", {"a": True, "b": None}), ("g.h", {})]), ("f(a='it\\'s')", [("f", {"a": "it's"})]),
      ("[f(1)]", []), ("[f(**x)]", []), ("[f(a=open('x'))]", []), ("[1, 2]", []), ("[f(a=b)]", []), ("[", []), ("", []),
      ("[f(a=b'x')]", []), ("[f(a={1: 2})]", []), ("(" * 9000, []), ("[f(a=1e999)]", []), ("-" * 9000 + "1", [])
  ):  # yapf: disable
    assert python_calls(text, {}) == calls, text


def test_line_9_nothing_in_a_long_answer_takes_long() -> None:
  """Neither many markers nor one call of a MB is read again and again."""
  import time
  for shape in SHAPES:
    text = (shape.form.begins[0] + " ") * 3000
    begun = time.monotonic()
    content, _, calls = read(shape.parser(), cut(text, random.Random(0), 40))
    assert not calls and (shape.name == "harmony" or "".join(content.split()) == "".join(text.split()))
    assert time.monotonic() - begun < 10, shape.name
  for form, text in (
      (formats.QWEN_CODER, "<tool_call>\n<function=get_weather>\n<parameter=city>\n" + "a b\n" * 100_000 +
       "</parameter>\n</function>\n</tool_call>"),
      (formats.LFM2, '<|tool_call_start|>[get_weather(city="' + "a b " * 15_000 + '")]<|tool_call_end|>'),
      (formats.GEMMA, '<|tool_call>call:get_weather{city:<|"|>' + "a b " * 100_000 + '<|"|>}<tool_call|>'),
  ):  # yapf: disable
    begun = time.monotonic()
    _, _, calls = read(ChatParser(None, form, SCHEMAS), cut(text, random.Random(0)))
    assert len(calls) == 1 and len(json.loads(calls[0][1])["city"]) > 50_000
    assert time.monotonic() - begun < 20, form.name


def test_line_9_templates_without_tools_have_no_format() -> None:
  assert tool_format("<tool_call>{{ messages }}") is None
  assert tool_format("{{ tools }}") is formats.HERMES
