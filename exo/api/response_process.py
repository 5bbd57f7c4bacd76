"""The process in which answers are read by the templates of strangers, whose regular expressions may take for ever. Runs as `main`."""

from __future__ import annotations

import json
import threading

from exo.api.response_answer import Piece, ResponseAnswer
from exo.child_process import serve

_THREADS = 2
_MOST_ANSWERS = 4096  # that nobody has finished; the oldest goes first

_answers: dict[int, ResponseAnswer] = {}
_lock = threading.Lock()
State = tuple[list[Piece], str, bool]  # what is new, what is pending, whether a thought goes on


def ready() -> None:
  """Import what is needed."""
  import transformers.utils.chat_parsing  # noqa: F401


def check(template: str) -> None:
  """Raises what is wrong with it."""
  ResponseAnswer(json.loads(template), "", []).finish()


def begin(number: int, template: str, prompt: str, tools: str, said: str) -> State:
  """An answer of which `said` has been read before."""
  answer = ResponseAnswer(json.loads(template), prompt, json.loads(tools))
  if said:
    answer.feed(said)
  with _lock:
    _answers[number] = answer
    while len(_answers) > _MOST_ANSWERS:
      _answers.pop(next(iter(_answers)))
  return [], answer.pending, answer.thinking


def feed(number: int, text: str) -> State:
  answer = _answers[number]
  return answer.feed(text), answer.pending, answer.thinking


def finish(number: int) -> State:
  answer = _answers.pop(number)
  return answer.finish(), "", False


def forget(numbers: list[int]) -> None:
  for number in numbers:
    _answers.pop(number, None)


def main() -> None:
  # it gives way to nothing, as others do: every piece of an answer waits for it, and it has little to do
  serve({"ready": ready, "check": check, "begin": begin, "feed": feed, "finish": finish, "forget": forget}, _THREADS)
