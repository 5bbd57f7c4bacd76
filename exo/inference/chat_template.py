"""Chat messages to prompt text, by the model's own Jinja template in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateError

from exo.errors import InvalidRequestError, ModelFilesError
from exo.inference.template_sandbox import FREE_CHARACTERS, BoundedEnvironment, bounded_filter, render_bounded

MAX_TEMPLATE_CHARS = 256 * 1024
# A template that a repository does not bring: ChatML, which most small models have seen.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _raise_exception(message: str) -> None:
  raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
  # Jinja's own filter escapes for HTML, which no prompt wants
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


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


def render_chat(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    special_tokens: Mapping[str, str],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    extra: Mapping[str, Any] | None = None,
) -> str:
  """The prompt of `messages`. Raises `InvalidRequestError` when the template refuses them."""
  template = _compile(source)
  variables = {
      "messages": [dict(message) for message in messages],
      "tools": list(tools) if tools else None,
      "add_generation_prompt": add_generation_prompt,
      **special_tokens,
      **(extra or {}),
  }
  sent = sum(len(value) for message in messages for value in message.values() if isinstance(value, str))
  try:
    return render_bounded(template, variables, FREE_CHARACTERS + 16 * sent)
  except TemplateError as error:
    raise InvalidRequestError(f"the model's chat template refuses these messages: {error}", "messages") from error
  except Exception as error:
    raise InvalidRequestError(
        f"the model's chat template cannot render these messages ({type(error).__name__}: {error})", "messages"
    ) from error
