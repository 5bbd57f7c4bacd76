"""Requirement 7's bounds on chat templates; requirements 6 to 8 on repositories and headers are tested with them."""

from __future__ import annotations

import re
import time
import tracemalloc

import jinja2
import pytest

from exo.errors import InvalidRequestError, ModelFilesError
from exo.inference.chat_template import CHATML, render_chat

MESSAGES = [{"role": "user", "content": "hello"}]


def render(template: str, content: str = "hello") -> str:
  return render_chat(template, [{"role": "user", "content": content}], special_tokens={})


GREEDY = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
             "{% endfor %}",
    "a search in lists": "{{ range(99999)|select('in', range(-99999, 0)|list)|list|length }}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "product": "{{ 'x' * 10**9 }}",
    "product of lists": "{{ ([1] * 10**9)|length }}",
    "powers": "{{ 10**999999 }}",
    "powers of powers": "{% set n = namespace(x=7) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "doubling": "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling by sum": "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling of lists": "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "centre": "{{ 'x'|center(999999999) }}",
    "justify": "{{ 'x'.ljust(999999999) }}",
    "justify by name": "{{ 'x'.zfill(width=999999999) }}",
    "indent": "{{ ('x\\n' * 1000)|indent(99999999) }}",
    "json": "{{ messages|tojson(indent=999999999) }}",
    "format": "{{ '%999999999d' % 1 }}",
    "format by star": "{{ '%*d' % (999999999, 1) }}",
    "format filter": "{{ '%999999999d'|format(1) }}",
    "format method": "{{ '{:999999999}'.format(1) }}",
    "format nested": "{{ '{:{}}'.format(1, 999999999) }}",
    "replace": "{% set a = 'x' * 99999 %}{{ a.replace('x', a) }}",
    "replace filter": "{% set a = 'x' * 99999 %}{{ a|replace('x', a) }}",
    "replace of nothing": "{% set a = 'x' * 99999 %}{{ a.replace('', a) }}",
    "join": "{% set a = 'x' * 99999 %}{{ a.join(range(99999)|map('string')|list) }}",
    "join filter": "{{ range(99999)|join('x' * 99999) }}",
    "batch": "{{ [1]|batch(999999999, 0)|list|length }}",
    "many copies": "{% set n = namespace(l=[]) %}{% set a = 'x' * 999999 %}{% for i in range(99999) %}"
                   "{% set n.l = n.l + [a ~ i] %}{% endfor %}",
    "output": "{% set a = 'x' * 99999 %}{% for i in range(99999) %}{{ a }}{% endfor %}",
}  # yapf: disable


@pytest.mark.parametrize("name", GREEDY)
def test_07_greedy_templates_end_in_time_and_bounds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr("exo.inference.chat_template.RENDER_TIMEOUT_S", 0.5)
  monkeypatch.setattr("exo.inference.chat_template.FREE_CHARACTERS", 2**20)
  tracemalloc.start()
  began = time.monotonic()
  try:
    with pytest.raises(InvalidRequestError, match="template"):
      render(GREEDY[name])
    assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
  finally:
    tracemalloc.stop()
  assert time.monotonic() - began < 20


# each with the words in which it is refused, or None where what it asks for is as if it were not there
ESCAPES = {
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "'__class__' of 'str' object is unsafe",
    "{{ messages.__class__ }}": None,
    "{{ raise_exception.__globals__ }}": None,
    "{{ strftime_now.__code__ }}": None,
    "{{ self._TemplateReference__context }}": None,
    "{{ cycler.__init__.__globals__ }}": "'__init__' of 'type' object is unsafe",
    "{{ messages.append(1) }}": "'append' of '_Given' object is unsafe",
    "{{ messages[0].update({'role': 'system'}) }}": "'update' of 'dict' object is unsafe",
    "{% include '/etc/passwd' %}": "no loader for this environment",
    "{% import 'os' as os %}{{ os.getcwd() }}": "no loader for this environment",
    "{{ '{0.__class__}'.format(1) }}": None,
    "{{ ''|attr('__class__') }}": None,
    "{{ environment }}{{ environment.call('x') }}": "'environment' is undefined",
}  # yapf: disable


@pytest.mark.parametrize("template", ESCAPES)
def test_07_templates_stay_in_the_sandbox(template: str) -> None:
  refusal = ESCAPES[template]
  if refusal is None:
    assert render(f"a{template}b") == "ab"
    return
  with pytest.raises(InvalidRequestError, match=re.escape(refusal)):
    render(template)


def test_22_line_14_the_escapes_are_some_without_a_sandbox() -> None:
  """What the test above refuses does something in an ordinary environment of jinja's."""
  free = jinja2.Environment(loader=jinja2.FileSystemLoader("/"))
  known = {"messages": [{"role": "user", "content": "hello"}], "raise_exception": render, "strftime_now": render}
  for template, refusal in ESCAPES.items():
    if refusal not in ("'environment' is undefined", "no loader for this environment"):
      assert free.from_string(template).render(known), template
  assert known["messages"] == [{"role": "system", "content": "hello"}, 1]


@pytest.mark.parametrize(
    "template", [
        "{% for x in %}", "{% continue %}", "{{ 1 +", "{% if %}" * 5000, "x" * 300_000,
        "{{ " + "(" * 5000 + ")" * 5000 + " }}", "{{ 1 / 0 }}", "{{ messages[5].x.y }}"
    ]
)
def test_07_broken_templates_are_named(template: str) -> None:
  with pytest.raises((ModelFilesError, InvalidRequestError), match="template"):
    render(template)


def test_07_long_chats_are_not_touched_by_the_bounds() -> None:
  long = "x" * 8_000_000
  assert long in render(CHATML, long)
  assert render(
      "{% for m in messages %}{{ m.content }}{% if loop.first %}{% continue %}{% endif %}{% endfor %}"
  ) == "hello"
  assert render("{{ messages|tojson }}") == '[{"role": "user", "content": "hello"}]'
  assert render(
      "{{ '%-6s|'|format('a') ~ 'b'.center(5) ~ ('a,b'|replace(',', ';')) ~ 2 ** 10 }}"
  ) == "a     |  b  a;b1024"
