"""What a request with forty tools waits for its grammar, with a vocabulary as large as Gemma's.

  python scripts/bench_grammar.py [--words 262144] [--tools 40] [--cold]

The vocabulary is made up. One row each: preparing it (at the load of a model, in the background, in a process of its own), the first
request with these tools, the same tools again, and the first mask of an answer; beside each the longest that another thread of this
process was kept from running meanwhile.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from exo.api.chat_request import FunctionDefinition, Tool  # noqa: E402
from exo.api.formats.hermes import HERMES  # noqa: E402
from exo.api.grammars import answer_grammar  # noqa: E402
from exo.api.held_schemas import held_tools  # noqa: E402
from exo.inference.grammar import GrammarCompiler, as_lark  # noqa: E402
from exo.inference.tokenizer import Tokenizer  # noqa: E402
from exo.inference.vocabulary import Vocabulary  # noqa: E402

LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
TICK_S = 0.002


class MadeUp(Vocabulary):
  """All bytes, then words as they are in large vocabularies, of several scripts."""
  special, joins_bytes, stripped_spaces = frozenset({0}), True, 0

  def __init__(self, n_words: int) -> None:
    rng = random.Random(1)
    found = dict.fromkeys([b"<eos>", *(bytes([i]) for i in range(256))])
    while len(found) < n_words:
      script = rng.random()
      letters = LETTERS if script < 0.6 else "".join(map(chr, range(0x430, 0x450))
                                                     ) if script < 0.8 else "".join(map(chr, range(0x4e00, 0x5200)))
      word = "".join(letters[int(rng.expovariate(0.2)) % len(letters)] for _ in range(1 + int(rng.expovariate(0.3))))
      found[(rng.choice(("", " ")) + rng.choice((word, word.capitalize()))).encode()] = None
    self._words = list(found)

  @property
  def size(self) -> int:
    return len(self._words)

  def ids(self, text: str) -> list[int]:
    return [1 + byte for byte in text.encode()]

  def token_bytes(self, token_id: int) -> bytes:
    return self._words[token_id]

  def id_of(self, name: str) -> int | None:
    return 0 if name == "<eos>" else None


def tools(count: int) -> list[Tool]:
  """Such as coding agents send: paths, patterns, numbers, choices, lists of objects."""
  text = {"type": "string", "description": "what it says"}
  edit = {
      "type": "object", "properties": {"old_string": text, "new_string": text, "replace_all": {"type": "boolean"}},
      "required": ["old_string", "new_string"]
  }
  made = []
  for i in range(count):
    properties: dict[str, Any] = {
        "file_path": text, f"pattern_{i}": {"type": "string", "pattern": "^[a-z]{1,20}$"},
        "limit": {"type": "integer", "minimum": 0, "maximum": 1000 + i},
        "mode": {"type": "string", "enum": [f"mode{i}", "content", "count"]}, "edits": {"type": "array", "items": edit},
        "url": {"type": "string", "format": "uri"}, "options": {"type": "object", "additionalProperties": text}
    }
    schema = {"type": "object", "properties": properties, "required": ["file_path", "mode"]}
    made.append(Tool(FunctionDefinition(f"mcp__server__tool_{i}", "What it does", schema)))
  return made


def timed(name: str, work: Callable[[], Any]) -> Any:
  """Do it, and print how long that took, and the longest pause of another thread."""
  over, worst = threading.Event(), 0.0

  def tick() -> None:
    nonlocal worst
    last = time.monotonic()
    while not over.is_set():
      time.sleep(TICK_S)
      now = time.monotonic()
      worst, last = max(worst, now - last - TICK_S), now

  thread = threading.Thread(target=tick)
  thread.start()
  began = time.monotonic()
  value = work()
  took = time.monotonic() - began
  over.set()
  thread.join()
  print(f"{name:48} {took * 1000:8.0f} ms   another thread waited {worst * 1000:5.0f} ms", flush=True)
  return value


def grammar_of(tokenizer: Tokenizer, offered: Sequence[Tool]) -> str:
  held, _ = held_tools(offered, (), must_call=False)
  return answer_grammar(
      tokenizer, wanted=None, tools=held, form=HERMES, must_call=False, one_call=False, thinking=None, lenient=True
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--words", type=int, default=262_144)
  parser.add_argument("--tools", type=int, default=40)
  parser.add_argument("--cold", action="store_true", help="with nothing prepared ahead")
  args = parser.parse_args()
  tokenizer = Tokenizer(MadeUp(args.words), frozenset({0}))
  compiler, offered = GrammarCompiler(tokenizer), tools(args.tools)
  if args.cold:
    grammar = grammar_of(tokenizer, offered)
    timed("all of it on a first request's way", lambda: compiler.check(grammar))
    return
  timed("the process starts", lambda: as_lark('root ::= "a"'))
  timed(f"a vocabulary of {args.words} words, at the load of a model", lambda: compiler.prepare().result())
  grammar = timed(f"the schemas of {args.tools} tools", lambda: grammar_of(tokenizer, offered))
  timed("their grammar, first request", lambda: compiler.check(grammar))
  timed("their grammar, second request", lambda: compiler.check(grammar))
  for name in ("first mask of the first answer", "first mask of the second answer"):
    logits = np.zeros(args.words, np.float32)
    timed(name, lambda logits=logits: compiler.start(grammar, 4096).apply(logits))  # type: ignore[misc]
  print(f"the grammar has {len(grammar)} characters")


if __name__ == "__main__":
  main()
