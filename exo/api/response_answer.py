"""One answer read by the `response_template` that a model ships: transformers' own parser, and what it does not give back.

That parser gives content and thoughts as they come, and each call when it is whole. It raises for a call that is none, and
forgets what its markers stood in; here that is text again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_THOUGHTS = frozenset({"reasoning_content", "reasoning", "thinking"})
_CALLS = "tool_calls"

CONTENT, REASONING, CALL = "content", "reasoning", "call"
Piece = tuple[str, str, str]  # kind, text or name, arguments


class ResponseAnswer:
  """`prompt` is what the answer follows, or its end. Raises `ValueError` and whatever else the library does for a bad template."""
  def __init__(self, template: dict[str, Any], prompt: str, tools: Sequence[Mapping[str, Any]]) -> None:
    # heavy, hence only in the process that needs it
    from transformers.utils.chat_parsing import ResponseParser
    from transformers.utils.chat_parsing.response_templates import load_response_template
    self._tools = [dict(tool) for tool in tools]
    self._names = {tool["function"]["name"] for tool in tools}
    self._spec = load_response_template(template)
    for region in self._spec.fields.values():
      region.optional = True  # an answer that lacks one is an answer all the same
    self._make = ResponseParser
    anchored = self._spec.start_anchor_re.search(prompt) is not None
    self._parser = self._parser_after(prompt if anchored else "")
    self._region = ""
    for event in self._parser.initial_events:
      self._follow(event)
    self._text = ""  # since the parser began
    self._settled = 0  # up to where no region is open that has not been given
    self._body = ""  # of the calls that are open
    self._any = False

  def _parser_after(self, prompt: str) -> Any:
    return self._make(self._spec, prefix=prompt, tools=self._tools)

  @property
  def thinking(self) -> bool:
    return self._region in _THOUGHTS

  @property
  def pending(self) -> str:
    """What was fed and has been given as nothing yet."""
    if self._region == _CALLS:
      return self._text[self._opened():]
    held = len(getattr(self._parser, "_buffer", "")) - getattr(self._parser, "_pos", 0)
    return self._text[-held:] if 0 < held <= len(self._text) else ""

  def feed(self, text: str) -> list[Piece]:
    before = len(self._text)
    self._text += text
    try:
      events = self._parser.feed(text)
    except Exception:  # noqa: BLE001 - the library's, about what the model wrote
      return self._given_up(text)
    return self._pieces(events, before)

  def finish(self) -> list[Piece]:
    before = len(self._text)
    if self._region == _CALLS and not self._is_closed():
      return [(CONTENT, self.pending, "")]  # cut; the library would make a call of what there is
    try:
      pieces = self._pieces(self._parser.finalize()[1], before)
    except Exception:  # noqa: BLE001 - as above
      pieces = self._given_up("")
    if not pieces and not self._any and self._text:
      return [(CONTENT, self._text, "")]  # in none of the template's regions
    return pieces

  def _follow(self, event: Mapping[str, Any]) -> None:
    self._region = event["field"] if event["type"] != "region_close" else ""

  def _pieces(self, events: Sequence[Mapping[str, Any]], before: int) -> list[Piece]:
    pieces: list[Piece] = []
    for event in events:
      field = event["field"]
      if event["type"] == "region_open" and field == _CALLS:
        self._body = ""
      elif event["type"] == "region_chunk" and field == _CALLS:
        self._body += event["text"]
      elif event["type"] == "region_chunk":
        pieces.append((REASONING if field in _THOUGHTS else CONTENT, event["text"], ""))
      elif event["type"] == "region_close":
        if field == _CALLS:
          pieces += self._calls(event["value"]) or [(CONTENT, self._raw(), "")]
        self._settled = before
      self._follow(event)
    self._any = self._any or bool(pieces)
    return pieces

  def _calls(self, value: Any) -> list[Piece]:
    """None where one of them is no call of the tools."""
    calls: list[Piece] = []
    for item in value if isinstance(value, list) else [value]:
      within = item.get("function", item) if isinstance(item, dict) else None
      if not isinstance(within, dict):
        return []
      name, arguments = within.get("name"), within.get("arguments", {})
      if isinstance(arguments, str):
        try:
          arguments = json.loads(arguments)
        except (ValueError, RecursionError):
          return []
      if not isinstance(name, str) or not isinstance(arguments, dict) or name not in self._names:
        return []
      calls.append((CALL, name, json.dumps(arguments, ensure_ascii=False)))
    return calls

  def _opened(self) -> int:
    """Where the marker of the calls that are open begins."""
    found = self._spec.fields[_CALLS].open_re.search(self._text, self._settled)
    return found.start() if found is not None else self._settled

  def _is_closed(self) -> bool:
    """Whether the text ends with what closes calls: a pattern that may grow is not seen to match before the end."""
    close = self._spec.fields[_CALLS].close_re
    return close is None or any(found.end() == len(self._text) for found in close.finditer(self._text, self._opened()))

  def _raw(self) -> str:
    """The calls that were just closed, with the markers around them."""
    begin = self._opened()
    end = self._text.find(self._body, begin) + len(self._body)
    close = self._spec.fields[_CALLS].close_re
    found = close.match(self._text, end) if close is not None else None
    return self._text[begin:found.end() if found is not None else end]

  def _given_up(self, text: str) -> list[Piece]:
    """The library raised: what it has not given is content, and it begins anew after that."""
    lost = self._text[self._opened():] if self._region == _CALLS else text
    self._parser, self._region, self._text, self._settled = self._parser_after(""), "", "", 0
    self._any = True
    return [(CONTENT, lost, "")] if lost else []
