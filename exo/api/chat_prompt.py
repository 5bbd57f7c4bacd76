"""From a chat request to what runs: the prompt's tokens, the grammar of the answer and how to read it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from exo.api.aside import aside
from exo.api.chat_parser import ChatParser
from exo.api.chat_parts import AnswerParser
from exo.api.chat_request import ChatCompletionRequest, Tool
from exo.api.constraints import Wanted
from exo.api.formats.harmony import FINAL, HARMONY
from exo.api.formats.hermes import HERMES
from exo.api.formats.json_lists import PHI
from exo.api.formats.tool_format import ToolFormat
from exo.api.grammars import answer_grammar
from exo.api.harmony_parser import HarmonyParser
from exo.api.held_schemas import alone, held, held_tools
from exo.api.response_reader import ResponseReader, usable
from exo.api.schema import check_depth
from exo.api.thinking import Thinking, thinking_of
from exo.api.tool_formats import is_harmony, tool_format
from exo.config import Config
from exo.errors import InvalidRequestError
from exo.inference.grammar import COMPILE_S
from exo.inference.plain_text import split_at
from exo.inference.tokenizer import Tokenizer
from exo.orchestration.model_catalog import ModelInfo

COUNTED_CONTEXTS = 4  # prompts that are only counted may be so many times longer than the context
_RESERVED_KWARGS = frozenset({"messages", "tools", "add_generation_prompt"})


@dataclass(frozen=True)
class ChatPrompt:
  """Everything of a chat that its model decides. `template`: answers are read by what the model ships. `text` is the
  prompt before it was tokenized.
  """
  ids: tuple[int, ...]
  grammar: str
  thinking: Thinking | None
  form: ToolFormat | None
  tools: tuple[Tool, ...]
  visible: frozenset[int]  # special tokens that the parser wants to see
  harmony: bool = False
  template: str | None = None
  text: str = ""
  continued: bool = False  # the answer goes on with content that stands in the prompt
  relaxed: tuple[str, ...] = ()  # what of schemas the answer is not held to
  held: tuple[Tool, ...] = ()  # the tools as the grammar knows them
  wanted: Wanted | None = None

  @property
  def plain(self) -> bool:
    """An answer is content, whatever it is."""
    return self.thinking is None and self.form is None and not self.harmony and self.template is None

  def parser(self) -> AnswerParser:
    """For one choice's text."""
    if self.template is None:
      return self._built_in(self.thinking)
    tools = [tool.for_template() for tool in self.tools]
    return ResponseReader(self.template, self.text, tools, self._instead)

  def _built_in(self, thinking: Thinking | None) -> AnswerParser:
    schemas = {tool.function.name: tool.function.schema for tool in self.tools}
    if self.harmony and self.form in (None, HARMONY):
      return HarmonyParser(schemas)
    return ChatParser(thinking, self.form, schemas, continued=self.continued)

  def _instead(self, thinking: bool) -> AnswerParser:
    """For the rest of an answer, in the middle of a thought or after them."""
    return self._built_in(replace(self.thinking, open_already=thinking) if self.thinking is not None else None)


async def chat_prompt(
    config: Config,
    model: ModelInfo,
    body: ChatCompletionRequest,
    most: int | None = None,
    *,
    after: Sequence[int] = ()
) -> ChatPrompt:
  """Renders and tokenizes, behind the tokens `after` which it goes on, and compiles the grammar once to see whether it can be followed.

  Raises `InvalidRequestError` for what the template or the grammar refuses, and for more than `most` tokens (by default
  the context).
  """
  template = model.tokenizer.response_template
  usable_template = await asyncio.to_thread(usable, template) if template is not None else None
  prompt = await aside(body.size, _prepare, config, model, body, most, usable_template)
  if after:
    prompt = replace(prompt, ids=(*after, *without_bos(prompt.ids, model.tokenizer)))
  if not prompt.grammar:
    return prompt
  await asyncio.to_thread(model.grammars.ready)
  try:
    return await _checked(config, model, body, prompt, usable_template)
  except TimeoutError:
    raise InvalidRequestError(f"the schema takes longer than {COMPILE_S:g} s to compile", "response_format") from None
  except InvalidRequestError as error:
    param = prompt.wanted.param if prompt.wanted is not None else "tools"
    raise InvalidRequestError(f"{param}: {error.message}", param) from None


async def _checked(
    config: Config, model: ModelInfo, body: ChatCompletionRequest, prompt: ChatPrompt, template: str | None
) -> ChatPrompt:
  """`prompt` with a grammar that compiles: a tool that has none is given up, and so is the grammar of an answer that is free."""
  async with asyncio.timeout(COMPILE_S):
    try:
      return await _warned(model, prompt)
    except InvalidRequestError as error:
      # of this library, not of the time it took
      if error.details.get("param") is not None or not prompt.held:
        raise
      given_up = await asyncio.to_thread(_at_fault, model, prompt.held)
      free = not body.must_call and prompt.wanted is None
      if not given_up and not free:
        raise
    if given_up:
      prompt = await aside(body.size, _prepare, config, model, body, len(prompt.ids), template, given_up)
      try:
        return await _warned(model, prompt)
      except InvalidRequestError:
        if not free:
          raise
    return replace(prompt, grammar="", relaxed=(*prompt.relaxed, "tools schemas"))


async def _warned(model: ModelInfo, prompt: ChatPrompt) -> ChatPrompt:
  warnings = await asyncio.to_thread(model.grammars.check, prompt.grammar)
  told = ["oneOf" if "oneOf" in warning else warning for warning in warnings]
  return replace(prompt, relaxed=(*prompt.relaxed, *told)) if told else prompt


def _at_fault(model: ModelInfo, tools: Sequence[Tool]) -> frozenset[str]:
  """The names of those tools whose arguments no grammar can be made for."""
  found = set()
  for tool in tools:
    try:
      model.grammars.check(alone(tool))
    except InvalidRequestError:
      found.add(tool.function.name)
  return frozenset(found)


def _prepare(
    config: Config,
    model: ModelInfo,
    body: ChatCompletionRequest,
    most: int | None,
    template: str | None,
    given_up: frozenset[str] = frozenset()
) -> ChatPrompt:
  """`given_up`: tools whose arguments are not held to their schemas."""
  body.check_done()
  tools = body.callable_tools
  wanted, relaxed = held(body.wanted)
  messages = [message.for_template() for message in body.messages]
  if config.system_prompt and messages[0]["role"] != "system":
    messages.insert(0, {"role": "system", "content": config.system_prompt})
  described = [tool.for_template() for tool in tools]
  (messages, described), mark = model.tokenizer.plain_text.marked(messages, described)
  extra = {key: value for key, value in (body.chat_template_kwargs or {}).items() if key not in _RESERVED_KWARGS}
  check_depth(extra, "chat_template_kwargs")
  source = model.tokenizer.template_for(tools=bool(tools))
  native, harmony = tool_format(source), is_harmony(source)
  form = None
  if tools:
    # a format without JSON cannot be forced: where a call is a must, it is asked for in ours
    form = native if native is not None and (native.can_force or not body.must_call) else HERMES
  known = form is not None and form.can_force  # to grammars
  held_to, of_tools = held_tools(tools, given_up, must_call=body.must_call) if known else (tools, [])
  prefill = _prefill(messages, body, wanted, harmony=harmony)
  marked = _render(model.tokenizer, messages, described, native, extra)
  rendered = "".join(split_at(marked, mark))
  thinking = None if harmony else thinking_of(model.tokenizer, rendered)
  if prefill is not None:
    if thinking is not None and thinking.open_already:
      marked, thinking = f"{marked}{thinking.end}\n\n", replace(thinking, open_already=False)
    marked, template = marked + prefill, None
  # what a grammar holds to a format of ours is read as that
  template = template if not body.must_call and wanted is None else None
  grammar = answer_grammar(
      model.tokenizer,
      wanted=wanted,
      tools=held_to,
      form=form,
      must_call=body.must_call,
      one_call=body.one_call,
      thinking=thinking,
      lenient=True,
      before_answer=FINAL if harmony else ""
  )
  marks = _marks(form, thinking, harmony, model.tokenizer.response_template if template is not None else None)
  # what ends an answer is no mark in it
  names = model.tokenizer.special_names.items()
  visible = frozenset(i for name, i in names if name in marks) - model.tokenizer.eos_ids
  ids = model.encode(marked, param="messages", most=most, mark=mark)
  return ChatPrompt(
      tuple(ids), grammar, thinking, form, tuple(tools), visible, harmony, template, "".join(split_at(marked, mark)),
      prefill is not None, (*relaxed, *(of_tools if grammar else ())), tuple(held_to if known else ()), wanted
  )


def without_bos(ids: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
  """For what does not begin a text."""
  return ids[1:] if tokenizer.bos_id is not None and ids[:1] == (tokenizer.bos_id, ) else ids


def _prefill(
    messages: list[dict[str, Any]], body: ChatCompletionRequest, wanted: Wanted | None, *, harmony: bool
) -> str | None:
  """The beginning of the answer, taken out of the messages where the last one is to be continued."""
  if not body.continue_final_message:
    return None
  if len(messages) < 2 or messages[-1]["role"] != "assistant" or messages[-1].get("tool_calls"):
    raise InvalidRequestError(
        "continue_final_message: the last message must be one of the assistant, without calls, after another",
        "messages"
    )
  if harmony or body.must_call or wanted is not None:
    what = "this model" if harmony else "an answer that must be a call or JSON"
    raise InvalidRequestError(
        f"messages: {what} cannot go on with a message of the assistant: leave it out", "messages"
    )
  text: str = messages.pop()["content"]
  return text


def _marks(form: ToolFormat | None, thinking: Thinking | None, harmony: bool, template: Any) -> str:
  """Every text in which special tokens may stand that a parser goes by."""
  forms = [*([form] if form is not None else []), *([HARMONY] if harmony else [])]
  tags = [thinking.begin, thinking.end, *thinking.wrap] if thinking is not None else []
  # in patterns, signs that mean something else there come after a backslash
  return "\n".join([*(form.marks for form in forms), *tags, *_texts(template)]).replace("\\", "")


def _texts(value: Any) -> Iterator[str]:
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict | list):
    for item in value.values() if isinstance(value, dict) else value:
      yield from _texts(item)


def _render(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], described: list[dict[str, Any]], native: ToolFormat | None,
    extra: Mapping[str, Any]
) -> str:
  if native is None:
    messages, described = _in_words(messages, described), []
  elif native is PHI and described:
    messages, described = _in_system_message(messages, described), []
  try:
    return tokenizer.render_chat(messages, described or None, extra)
  except InvalidRequestError:
    folded = _without_system(messages)
    if folded == messages:
      raise
    return tokenizer.render_chat(folded, described or None, extra)  # some templates know no system role


def _without_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """The system's words at the beginning of the first user message."""
  system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
  rest = [dict(m) for m in messages if m["role"] != "system"]
  first = next((m for m in rest if m["role"] == "user"), None)
  if not system or first is None:
    return list(messages)
  first["content"] = f"{system}\n\n{first['content']}"
  return rest


def _in_system_message(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Tools as a property of the system message, where Phi's template looks for them."""
  told = {"tools": json.dumps([tool["function"] for tool in tools])}
  if messages[0]["role"] == "system":
    return [messages[0] | told, *messages[1:]]
  return [{"role": "system", "content": ""} | told, *messages]


def _in_words(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Tools, calls and results as plain messages, for a template that knows none of them."""
  out: list[dict[str, Any]] = []
  for message in messages:
    if message["role"] == "tool":
      out.append({"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"})
    elif message.get("tool_calls"):
      calls = "\n".join(f"<tool_call>\n{json.dumps(c['function'])}\n</tool_call>" for c in message["tool_calls"])
      out.append({"role": "assistant", "content": f"{message['content']}\n{calls}".strip()})
    else:
      out.append(message)
  if not tools:
    return out
  told = (
      "You may call functions to help the user. These are the functions:\n" + "\n".join(map(json.dumps, tools)) +
      '\nTo call one, answer with\n<tool_call>\n{"name": <its name>, "arguments": <its arguments as JSON>}\n</tool_call>'
  )
  if out[0]["role"] == "system":
    return [{"role": "system", "content": f"{out[0]['content']}\n\n{told}"}, *out[1:]]
  return [{"role": "system", "content": told}, *out]
