"""Chat messages to prompt text, by the model's own Jinja template in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import msgspec
from jinja2 import Template
from jinja2.exceptions import TemplateError

from exo.child_process import ChildGoneError, ChildProcess
from exo.errors import InvalidRequestError, ModelFilesError
from exo.inference.template_sandbox import (
    FREE_CHARACTERS,
    RENDER_TIMEOUT_S,
    BoundedEnvironment,
    TemplateBoundsError,
    bounded_filter,
    render_bounded,
)
from exo.inference.whole_characters import whole_characters

MAX_TEMPLATE_CHARS = 256 * 1024
# up to which a chat is rendered in this process
_SMALL_CHARACTERS = 64 * 1024
_SMALL_TOOLS = 32
_SMALL_BUDGET = 2**20
_SMALL_S = 0.5
_LONGEST_SEPARATOR = 16
_GRACE_S = 5.0  # of the process: to start, to compile, to be scheduled
# A template that a repository does not bring: ChatML, which most small models have seen.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _raise_exception(message: str) -> None:
  raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
    **_: Any
) -> str:
  # Jinja's own filter escapes for HTML, which no prompt wants
  if separators is not None and any(len(text) > _LONGEST_SEPARATOR for text in separators):
    raise TemplateError("it asks for absurd separators")
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=16)
def _compile(source: str) -> Template:
  if len(source) > MAX_TEMPLATE_CHARS:
    raise ModelFilesError(f"the chat template has {len(source)} characters; {MAX_TEMPLATE_CHARS} are allowed")
  environment = BoundedEnvironment()
  environment.filters["tojson"] = bounded_filter("tojson", _to_json)
  environment.globals["raise_exception"] = _raise_exception
  environment.globals["strftime_now"] = lambda fmt: datetime.now().strftime(fmt)
  try:
    return environment.from_string(source)
  except (TemplateError, SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
    raise ModelFilesError(f"the model's chat template does not compile: {error}") from error


@lru_cache(maxsize=1)
def _child() -> ChildProcess:
  return ChildProcess("exo.inference.template_process", "templates")


def render_chat(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    special_tokens: Mapping[str, str],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> str:
  """The prompt of `messages`. Blocks. Raises `InvalidRequestError` when the template refuses them.

  What is small is rendered here, within bounds so narrow that nothing in them holds the interpreter; what is not, or turns
  out to want more, in a process of its own that can be ended.
  """
  variables = {
      "messages": [dict(message) for message in messages],
      "tools": list(tools) if tools else None,
      "add_generation_prompt": add_generation_prompt,
      **special_tokens,
      **(extra or {}),
  }
  sent = sum(len(value) for message in messages for value in message.values() if isinstance(value, str))
  if sent <= _SMALL_CHARACTERS and len(source) <= _SMALL_CHARACTERS and not (tools and len(tools) > _SMALL_TOOLS):
    try:
      return _render(source, variables, _SMALL_BUDGET + 16 * sent, _SMALL_S)
    except TemplateBoundsError:
      pass
  packed = _packed(variables)
  for last in (False, True):
    try:
      text: str = _child().ask(
          RENDER_TIMEOUT_S + _GRACE_S, "render", source, *packed, FREE_CHARACTERS + 16 * sent, RENDER_TIMEOUT_S
      )
      return text
    except TimeoutError:
      raise InvalidRequestError(
          f"the model's chat template cannot render these messages: it takes longer than {RENDER_TIMEOUT_S:g} s",
          "messages"
      ) from None
    except ChildGoneError:  # with another's render, perhaps
      if last:
        raise InvalidRequestError(
            "the model's chat template cannot render these messages: the process that did so ended", "messages"
        ) from None
  raise AssertionError


def _packed(variables: dict[str, Any]) -> tuple[bytes, bool]:
  """Variables for another process, and whether they are JSON: msgpack knows neither wide integers nor half characters."""
  try:
    return msgspec.msgpack.encode(variables), False
  except (UnicodeEncodeError, OverflowError, TypeError):
    return json.dumps(variables).encode(), True


def render_here(source: str, packed: bytes, is_json: bool, budget: int, time_s: float) -> str:
  """The same in this process, within `budget` characters. Raises `InvalidRequestError`, `ModelFilesError`."""
  variables = json.loads(packed) if is_json else msgspec.msgpack.decode(packed)
  try:
    return whole_characters(_render(source, variables, budget, time_s))
  except TemplateBoundsError as error:
    raise InvalidRequestError(f"the model's chat template refuses these messages: {error}", "messages") from error


def _render(source: str, variables: dict[str, Any], budget: int, time_s: float) -> str:
  template = _compile(source)
  try:
    return render_bounded(template, variables, budget, time_s)
  except TemplateBoundsError:
    raise
  except TemplateError as error:
    raise InvalidRequestError(f"the model's chat template refuses these messages: {error}", "messages") from error
  except Exception as error:
    raise InvalidRequestError(
        f"the model's chat template cannot render these messages ({type(error).__name__}: {error})", "messages"
    ) from error
