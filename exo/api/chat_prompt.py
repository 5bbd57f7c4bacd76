"""From a chat request to what runs: the prompt's tokens, the grammar of the answer and how to read it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exo.api.aside import aside
from exo.api.chat_parser import ChatParser
from exo.api.chat_request import ChatCompletionRequest, Tool
from exo.api.grammars import Thinking, answer_grammar
from exo.api.schema import check_depth
from exo.api.tool_formats import HERMES, ToolFormat, tool_format
from exo.config import Config
from exo.errors import InvalidRequestError
from exo.inference.grammar import COMPILE_S
from exo.inference.tokenizer import Tokenizer
from exo.orchestration.model_catalog import ModelInfo

_THINKING = (Thinking("<think>", "</think>"), Thinking("<|channel>thought", "<channel|>"))
COUNTED_CONTEXTS = 4  # prompts that are only counted may be so many times longer than the context
_RESERVED_KWARGS = frozenset({"messages", "tools", "add_generation_prompt"})


@dataclass(frozen=True)
class ChatPrompt:
  """Everything of a chat that its model decides."""
  ids: tuple[int, ...]
  grammar: str
  thinking: Thinking | None
  form: ToolFormat | None
  tools: tuple[Tool, ...]
  visible: frozenset[int]  # special tokens that the parser wants to see

  def parser(self) -> ChatParser:
    """For one choice's text."""
    return ChatParser(self.thinking, self.form, {tool.function.name: tool.function.schema for tool in self.tools})


async def chat_prompt(
    config: Config, model: ModelInfo, body: ChatCompletionRequest, most: int | None = None
) -> ChatPrompt:
  """Renders and tokenizes, and compiles the grammar once to see whether it can be followed.

  Raises `InvalidRequestError` for what the template or the grammar refuses, and for more than `most` tokens (by default
  the context).
  """
  prompt = await aside(body.size, _prepare, config, model, body, most)
  if not prompt.grammar:
    return prompt
  try:
    async with asyncio.timeout(COMPILE_S):
      await asyncio.to_thread(model.grammars.check, prompt.grammar)
  except TimeoutError:
    raise InvalidRequestError(f"the schema takes longer than {COMPILE_S:g} s to compile", "response_format") from None
  except InvalidRequestError as error:
    param = "tools" if prompt.form is not None and body.response_format is None else "response_format"
    raise InvalidRequestError(f"{param}: {error.message}", param) from None
  return prompt


def _prepare(config: Config, model: ModelInfo, body: ChatCompletionRequest, most: int | None) -> ChatPrompt:
  tools = body.callable_tools
  schema = body.response_format.wanted if body.response_format is not None else None
  messages = [message.for_template() for message in body.messages]
  if config.system_prompt and messages[0]["role"] != "system":
    messages.insert(0, {"role": "system", "content": config.system_prompt})
  extra = {key: value for key, value in (body.chat_template_kwargs or {}).items() if key not in _RESERVED_KWARGS}
  check_depth(extra, "chat_template_kwargs")
  native = tool_format(model.tokenizer.template_for(tools=bool(tools)))
  form = None
  if tools:
    # a format without JSON cannot be forced: where a call is a must, it is asked for in ours
    form = native if native is not None and (native.can_force or not body.must_call) else HERMES
  rendered = _render(model.tokenizer, messages, tools, native, extra)
  thinking = _thinking(model.tokenizer, rendered)
  grammar = answer_grammar(
      model.tokenizer,
      schema=schema,
      tools=tools,
      form=form,
      must_call=body.must_call,
      one_call=body.one_call,
      thinking=thinking,
      lenient=True
  )
  marks = [
      *(form.begins if form else ()), form.end if form else "", thinking.begin if thinking else "",
      thinking.end if thinking else ""
  ]
  visible = frozenset(i for mark in marks if mark and (i := model.tokenizer.special_id(mark)) is not None)
  ids = model.encode(rendered, param="messages", most=most)
  return ChatPrompt(tuple(ids), grammar, thinking, form, tuple(tools), visible)


def _thinking(tokenizer: Tokenizer, rendered: str) -> Thinking | None:
  """The tags of a reasoning model; None for others."""
  for tags in _THINKING:
    if tags.end in (tokenizer.chat_template or "") or tokenizer.id_of(tags.end) is not None:
      return Thinking(tags.begin, tags.end, rendered.rstrip().endswith(tags.begin))
  return None


def _render(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], tools: Sequence[Tool], native: ToolFormat | None,
    extra: Mapping[str, Any]
) -> str:
  described = [tool.for_template() for tool in tools]
  if native is None:
    messages, described = _in_words(messages, described), []
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
