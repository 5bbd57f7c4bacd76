"""How a family of models writes tool calls, as data that `ChatParser` reads by and the grammars of forced calls write by."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Call = tuple[str, dict[str, Any]]  # name, arguments
Schemas = Mapping[str, dict[str, Any]]  # of each tool's arguments, by its name
Parse = Callable[[str, Schemas], list[Call]]  # of the text between the markers
NAME = r"[A-Za-z0-9_.-]{1,128}"


@dataclass(frozen=True)
class Tagged:
  """Arguments that stand between tags, one after another, as bare text.

  `key` matches what stands before a value: the group `key` is the argument's name, a group `type` may say what the value is
  where the format tells it. `close` ends the value, `done` the call. `lines`: values stand on lines of their own.
  """
  key: re.Pattern[str]
  close: str
  done: str
  lines: bool = False


@dataclass(frozen=True)
class ToolFormat:
  """`begins` may each open calls, the first is what we write; `end` closes them ("" where nothing does).

  Between them stand calls, which are read in one of three ways. Where `header` matches what comes first, its group is the
  name, and what follows are JSON arguments or, with `tagged`, arguments between tags: both are given as they come. What
  `header` does not match is given to `parse` when it is whole; what that does not understand either is text.

  `again` begins another call before `end`; `closers` are what may stand between a call and what comes next. `bare` are the
  brackets with which a call may begin without a marker.

  A call is written `begins[0] + before_name + NAME + before_arguments + ARGUMENTS + after_arguments + end`, or in `sections`
  with the first and the last once around all calls. Every marker of it, and each in `others`, may be a special token.
  """
  name: str
  begins: tuple[str, ...]
  end: str
  parse: Parse
  header: re.Pattern[str] | None = None
  tagged: Tagged | None = None
  again: str = ""
  closers: tuple[str, ...] = ()
  bare: str = ""
  before_name: str = ""
  before_arguments: str = ""
  after_arguments: str = ""
  listed: bool = False  # one marker, then a JSON list of calls
  sections: bool = False
  others: tuple[str, ...] = ()
  id_length: int = 0  # of call ids, where templates insist on one; else 0
  ends_thoughts: bool = False  # a call may begin before the thoughts have been closed
  single: bool = False  # an answer has one call at most
  guided: bool = True  # a grammar may also hold what calls there are in a free answer

  @property
  def can_force(self) -> bool:
    """Whether a grammar can hold a model to it: the arguments must be JSON."""
    return bool(self.before_arguments) and self.tagged is None

  @property
  def in_object(self) -> bool:
    """Name and arguments are members of one JSON object."""
    return self.after_arguments.lstrip().startswith("}")

  @property
  def marks(self) -> str:
    """Every text that may have to be seen to read or written to force a call."""
    tags = (self.tagged.close, self.tagged.done) if self.tagged is not None else ()
    written = (self.before_name, self.before_arguments, self.after_arguments)
    return "\n".join((*self.begins, self.end, self.again, *self.closers, *written, *tags, *self.others))
