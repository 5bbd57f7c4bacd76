"""Line 9: answers read by the `response_template` that a model ships, within a time bound, and forced calls of every format."""

from __future__ import annotations

import asyncio
import copy
import json
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import msgspec
import numpy as np
import psutil
import pytest

from exo.api import response_reader
from exo.api import tool_formats as formats
from exo.api.chat_parser import ChatParser
from exo.api.chat_parts import AnswerParser
from exo.api.chat_prompt import ChatPrompt, chat_prompt
from exo.api.chat_request import ChatCompletionRequest, FunctionDefinition, Tool
from exo.api.constraints import Wanted
from exo.api.formats.harmony import FINAL
from exo.api.formats.tool_format import ToolFormat
from exo.api.grammars import answer_grammar
from exo.api.harmony_parser import HarmonyParser
from exo.api.response_reader import ResponseReader, usable
from exo.api.thinking import thinking_of
from exo.config import Config
from exo.inference.grammar import GrammarCompiler
from exo.inference.tokenizer import Tokenizer
from exo.inference.vocabulary import Vocabulary
from exo.inference.weights.checkpoint import Checkpoint
from test.support.chat_shapes import PARIS, SCHEMAS, THINK, read
from test.support.nodes import ring

TOOLS = [{"type": "function", "function": {"name": name, "description": "", "parameters": schema}}
         for name, schema in SCHEMAS.items()]  # yapf: disable
# as transformers writes it for a family with tags
TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"}, "start_anchor": "<|im_start|>assistant\n", "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<call>\s*<fn (?P<name>\w+)>", "close_pattern": r"</fn>\s*</call>", "repeats": True,
            "content": "xml-inline", "content_args": {"tag_pattern": r"<arg (?P<key>\w+)>(?P<value>.*?)</arg>"},
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
        },
        "json_calls": {"open": "<json>", "close": "</json>", "content": "json", "repeats": True},
        "content": {"close_pattern": r"\s*<\|im_end\|>", "content": "text"}
    }
}  # yapf: disable
CALL = "<call><fn get_weather><arg city>Paris</arg><arg days>3</arg></fn></call>"
PROMPT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def built_in(thinking: bool) -> AnswerParser:
  return ChatParser(THINK, formats.HERMES, SCHEMAS)


def reader(template: Any = TEMPLATE, prompt: str = PROMPT, tools: Any = TOOLS) -> ResponseReader:
  text = usable(template)
  assert text is not None
  return ResponseReader(text, prompt, tools, built_in)


def answer(parser: AnswerParser, pieces: list[str]) -> tuple[str, str, list[tuple[str, Any]]]:
  content, thoughts, calls = read(parser, pieces)
  return content, thoughts, [(name, json.loads(arguments)) for name, arguments in calls]


def cut(text: str, seed: int) -> list[str]:
  rng, pieces = random.Random(seed), list[str]()
  while text:
    size = rng.randrange(1, 9)
    pieces, text = [*pieces, text[:size]], text[size:]
  return pieces


def test_line_9_a_shipped_template_reads_the_answer() -> None:
  text = f"<think>hm</think>\n\nLet me see.\n{CALL}\n{CALL}That is it."
  for pieces in ([text], list(text), cut(text, 1), cut(text, 2)):
    content, thoughts, calls = answer(reader(), pieces)
    assert (thoughts, calls) == ("hm", [("get_weather", PARIS)] * 2), pieces
    assert content in ("Let me see.That is it.", "Let me see.\nThat is it.")
  opened = PROMPT + "<think>\n"
  parser = reader(prompt=opened)
  assert answer(parser, list("hm</think>Four.")) == ("Four.", "hm", []) and not parser.called
  assert answer(reader(prompt="no anchor <think>"), ["Four."]) == ("Four.", "", [])
  parser = reader()
  parser.push("<think>h")
  assert parser.thinking
  parser.push(f"</think>{CALL}.")
  assert not parser.thinking and parser.called


def test_line_9_what_a_shipped_template_cannot_read_is_text() -> None:
  for text in (
      "<call><fn get_money><arg city>x</arg></fn></call>", "<call> <fn now", f"{CALL[:40]}", "a <call> b",
      "<json>no</json>", "<json>[1, 2]</json> and more"
  ):
    for pieces in ([text], list(text), cut(text, 3)):
      content, _, calls = answer(reader(), pieces)
      assert not calls
      for word in ("get_money", "now", "Pa", " b", "no", "[1, 2]", "and more"):
        assert word not in text or word in content, (text, content)
  content, _, calls = answer(reader(), ["a " + CALL.replace("get_weather", "get_money") + " b " + CALL])
  assert "get_money" in content and "</fn></call>" in content and calls == [("get_weather", PARIS)]
  assert answer(reader(tools=[]), [CALL]) == (CALL, "", [])  # nobody asked for calls
  no_content = copy.deepcopy(TEMPLATE)
  del no_content["fields"]["content"]
  assert answer(reader(no_content), list("Four.")) == ("Four.", "", [])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
  lines: list[str] = []
  monkeypatch.setattr(response_reader, "log", lambda level, message, *args: lines.append(message % args))
  yield lines


def test_line_9_a_bad_template_is_told_once_and_not_used(told: list[str]) -> None:
  bad: list[Any] = [
      {}, [], "text", {"fields": {}}, {**TEMPLATE, "version": 9}, {"start_anchor": "x", "fields": {"a": {"open_pattern": "("}}},
      {**TEMPLATE, "defaults": {"x": "y" * 70_000}}, {"start_anchor": "x", "fields": {"content": {"content": "no such"}}}
  ]  # yapf: disable
  for n, template in enumerate(bad, 1):
    assert usable(template) is None and usable(template) is None
    assert len(told) == n and "response_template" in told[-1]
  assert usable(None) is None and len(told) == len(bad)


SLOW = copy.deepcopy(TEMPLATE)
SLOW["fields"]["content"]["close_pattern"] = r"(?:a|aa|b?a?)+(?:a|aa|b?a?)+(?:a|aa)+$END"


def test_line_9_regular_expressions_of_strangers_end(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
  """The rest of the answer is read by a built-in format, and the next one from its beginning on."""
  monkeypatch.setattr(response_reader, "STEP_S", 1.0)
  call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}</tool_call>'
  well = reader()
  well.push("<think>before")
  begun = time.monotonic()
  content, _, calls = answer(reader(SLOW), ["Fine: ", "a" * 4000, " so ", call])
  assert time.monotonic() - begun < 30
  assert "a" * 4000 in content and "Fine:" in content and calls == [("get_weather", PARIS)]
  assert len([line for line in told if "not used" in line]) == 1 and usable(SLOW) is None
  # whose process that was as well
  assert answer(well, [" after</think>", "Four."])[:2] == ("Four.", " after")


def test_line_9_an_answer_goes_on_when_its_process_dies() -> None:
  parser = reader()
  text = f"<think>hm</think>Let me see.{CALL}That is it."
  parts: list[Any] = []
  for i, piece in enumerate(cut(text, 7)):
    if i % 5 == 3:
      for child in psutil.Process().children():
        if "exo.api.response_process" in child.cmdline():
          child.kill()
    parts += parser.push(piece)
  parts += parser.finish()
  joined = "".join(getattr(part, "text", "") for part in parts)
  assert "Let me see." in joined and joined.endswith("That is it.") and parser.called


@pytest.mark.parametrize("template", [TEMPLATE, SLOW, {"fields": 3}], ids=["good", "slow", "bad"])
def test_line_9_the_api_answers_whatever_template_a_model_ships(goldens: Path, tmp_path: Path, template: Any) -> None:
  folder = tmp_path / "models" / "shipped"
  shutil.copytree(goldens / "llama", folder)
  config = json.loads((folder / "tokenizer_config.json").read_text())
  (folder / "tokenizer_config.json").write_text(json.dumps(config | {"response_template": template}))
  shutil.copytree(goldens / "llama", tmp_path / "models" / "plain")
  with ring(tmp_path, 1, "--model-dir", str(tmp_path / "models"), "--default-model", "plain") as nodes:
    body = {"messages": [{"role": "user", "content": "t5 t7"}], "max_tokens": 24, "temperature": 0}
    wanted = nodes[0].post("/v1/chat/completions", body)[1]["choices"][0]
    for more in ({}, {"n": 2}, {"logprobs": True}):
      status, got = nodes[0].post("/v1/chat/completions", body | more | {"model": "shipped"})
      assert status == 200 and len(got["choices"]) == more.get("n", 1)
      for choice in got["choices"]:
        assert choice["message"]["content"].strip() == wanted["message"]["content"].strip()
        assert choice["finish_reason"] == wanted["finish_reason"]


# forced calls


class WithMarks(Vocabulary):
  """Another vocabulary, and special tokens with these names after its own."""
  joins_bytes, stripped_spaces = True, 0

  def __init__(self, known: Vocabulary, marks: list[str]) -> None:
    self._known, self._marks = known, marks
    self.special = known.special | frozenset(range(known.size, known.size + len(marks)))

  @property
  def size(self) -> int:
    return self._known.size + len(self._marks)

  def ids(self, text: str) -> list[int]:
    return self._known.ids(text)

  def token_bytes(self, token_id: int) -> bytes:
    if token_id < self._known.size:
      return self._known.token_bytes(token_id)
    return self._marks[token_id - self._known.size].encode()

  def id_of(self, name: str) -> int | None:
    return self._known.size + self._marks.index(name) if name in self._marks else self._known.id_of(name)


@pytest.fixture(scope="module")
def special(smollm2: Checkpoint) -> Tokenizer:
  """Words of a real model, and the tokens of every format as special ones."""
  marks = [
      "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>", "[TOOL_CALLS]", "[ARGS]",
      "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_end|>",
      "<|tool_call_argument_begin|>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
      "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<|tool_call|>", "<|START_ACTION|>", "<|END_ACTION|>"
  ]
  return Tokenizer(WithMarks(smollm2.tokenizer().vocabulary, marks), smollm2.tokenizer().eos_ids)


FORCED = [form for form in vars(formats).values() if isinstance(form, ToolFormat) and form.can_force]


def sampled(tokenizer: Tokenizer, grammar: str, form: ToolFormat, seed: int) -> str:
  """A text of random tokens that the grammar allows, as its parser sees it."""
  constraint = GrammarCompiler(tokenizer).start(grammar, 600)
  rng, said = np.random.default_rng(seed), list[int]()
  while True:
    logits = rng.normal(size=tokenizer.vocab_size).astype(np.float32)
    constraint.apply(logits)
    token_id = next((i for i in map(int, (-logits).argsort()[:64]) if constraint.fits(i)), constraint.way_out)
    constraint.accept(token_id)
    if token_id in tokenizer.eos_ids:
      break
    said.append(token_id)
  visible = [i for name, i in tokenizer.special_names.items() if name in form.marks + FINAL]
  detokenizer = tokenizer.detokenizer(visible=visible)
  return detokenizer.push(said) + detokenizer.finish()


@pytest.mark.parametrize("form", FORCED, ids=lambda form: form.name)
@pytest.mark.parametrize("tokens", ["special", "plain"])
def test_line_9_calls_are_forced_in_the_models_own_format(
    special: Tokenizer, smollm2: Checkpoint, form: ToolFormat, tokens: str
) -> None:
  tokenizer = special if tokens == "special" else smollm2.tokenizer()
  tools = [Tool(FunctionDefinition(name, parameters=schema)) for name, schema in SCHEMAS.items()]
  for one_call in (False, True):
    grammar = answer_grammar(
        tokenizer, wanted=None, tools=tools, form=form, must_call=True, one_call=one_call, thinking=None, lenient=True
    )
    text = sampled(tokenizer, grammar, form, 3)
    parser = HarmonyParser(SCHEMAS) if form.name == "harmony" else ChatParser(None, form, SCHEMAS)
    content, _, calls = answer(parser, list(text))
    assert not content and calls, text
    assert len(calls) == 1 or not (one_call or form.single)
    for name, arguments in calls:
      jsonschema.validate(arguments, SCHEMAS[name])


def test_line_9_free_answers_have_grammars_that_compile(special: Tokenizer, smollm2: Checkpoint) -> None:
  tools = [Tool(FunctionDefinition(name, parameters=schema)) for name, schema in SCHEMAS.items()]
  for tokenizer in (special, smollm2.tokenizer()):
    compiler = GrammarCompiler(tokenizer)
    for form in FORCED:
      for wanted in (None, Wanted("schema", {"type": "object"})):
        for one_call in (False, True):
          grammar = answer_grammar(
              tokenizer,
              wanted=wanted,
              tools=tools,
              form=form,
              must_call=False,
              one_call=one_call,
              thinking=None,
              lenient=True
          )
          assert bool(grammar) == (wanted is not None or (form.guided and not form.bare))
          if grammar:
            compiler.check(grammar)


def test_line_9_an_answer_of_a_schema_stands_in_the_last_channel(special: Tokenizer) -> None:
  schema = {
      "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False
  }
  grammar = answer_grammar(
      special,
      wanted=Wanted("schema", schema),
      tools=(),
      form=None,
      must_call=False,
      one_call=False,
      thinking=None,
      lenient=True,
      before_answer=FINAL
  )
  text = sampled(special, grammar, formats.HARMONY, 1)
  assert text.startswith(FINAL)
  jsonschema.validate(json.loads(read(HarmonyParser({}), [text])[0]), schema)


HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}{{ tools }}<|start|>assistant"
    "{# <|channel|>analysis<|message|> #}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if 'tools' in m and m.tools is not none %}<|tool|>{{ m.tools }}"
    "<|/tool|>{% endif %}{% endfor %}"
)


def prompt_of(tokenizer: Tokenizer,
              template: str,
              response_template: Any = None,
              **fields: Any) -> tuple[ChatPrompt, str]:
  """(the prompt of a request, its text)."""
  model: Any = SimpleNamespace(
      tokenizer=replace(tokenizer, chat_template=template, response_template=response_template),
      grammars=GrammarCompiler(tokenizer),
      encode=lambda text, **_: texts.append(text) or []
  )
  texts: list[str] = []
  body = msgspec.convert({"messages": [{"role": "user", "content": "hi"}], **fields}, ChatCompletionRequest)
  return asyncio.run(chat_prompt(Config(), model, body)), texts[0]


def test_line_9_a_request_is_read_in_the_format_of_its_model(special: Tokenizer) -> None:
  channel = special.special_id("<|channel|>")
  for fields, grammar in (
      ({}, ""), ({"tools": TOOLS}, ""), ({"tools": TOOLS, "tool_choice": "required"}, f"start: <[{channel}]> call"),
      ({"response_format": {"type": "json_object"}}, f"<[{channel}]> \"final\"")
  ):  # yapf: disable
    prompt, _ = prompt_of(special, HARMONY, **fields)
    assert isinstance(prompt.parser(), HarmonyParser) and not prompt.plain and channel in prompt.visible
    assert grammar in prompt.grammar and bool(prompt.grammar) == bool(grammar)
    assert not prompt.visible & special.eos_ids
  prompt, text = prompt_of(special, PHI, tools=TOOLS)
  assert prompt.form is formats.PHI and '<|tool|>[{"name": "get_weather"' in text
  for fields, shipped in (
      ({}, True), ({"tools": TOOLS}, True), ({"tools": TOOLS, "tool_choice": "required"}, False),
      ({"response_format": {"type": "json_object"}}, False)
  ):  # yapf: disable
    prompt, _ = prompt_of(special, "{{ messages }}{{ tools }}<|end|>", TEMPLATE, **fields)
    assert isinstance(prompt.parser(), ResponseReader) == shipped
  assert prompt_of(special, "{{ messages }}")[0].plain


def test_line_9_thoughts_are_known_by_the_template(special: Tokenizer) -> None:
  def of(template: str, rendered: str = "") -> Any:
    return thinking_of(Tokenizer(special.vocabulary, special.eos_ids, chat_template=template), rendered)

  for begin, end in (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"),
                     ("<|START_THINKING|>", "<|END_THINKING|>"), ("<|channel>thought", "<channel|>")):
    found = of(begin + end)
    assert (found.begin, found.end, found.open_already) == (begin, end, False)
    assert of(begin + end, f"hi{begin}\n").open_already
  assert of("</think><response></response>").wrap == ("<response>", "</response>")
  assert of("plain") is None
