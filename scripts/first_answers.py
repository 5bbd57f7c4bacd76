"""Asks a model what newcomers ask: fifty questions with words that a right answer has, under several settings.

  python scripts/first_answers.py --url http://localhost:52415 [--model NAME] [--show]
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

# question, and a pattern that a right answer matches
QUESTIONS = (
    ("What is 2 + 2?", r"\b(4|four)\b"), ("What is 3 + 4?", r"\b(7|seven)\b"), ("What is 10 - 3?", r"\b(7|seven)\b"),
    ("What is 5 times 5?", r"\b25\b"), ("What is half of 10?", r"\b(5|five)\b"),
    ("What is the capital of France?", r"Paris"), ("What is the capital of Italy?", r"Rome"),
    ("What is the capital of Japan?", r"Tokyo"), ("What is the capital of Germany?", r"Berlin"),
    ("What is the capital of Spain?", r"Madrid"), ("What colour is the sky?", r"(?i)blue"),
    ("What colour is grass?", r"(?i)green"), ("What do bees make?", r"(?i)honey"), ("What do cows drink?", r"(?i)water"),
    ("How many days has a week?", r"\b(7|[Ss]even)\b"), ("How many legs has a spider?", r"\b(8|[Ee]ight)\b"),
    ("How many months has a year?", r"\b(12|[Tt]welve)\b"), ("How many hours are in a day?", r"\b(24|[Tt]wenty-four)\b"),
    ("Which planet do we live on?", r"Earth"), ("What is the largest planet?", r"Jupiter"),
    ("What is the largest ocean?", r"Pacific"), ("Who wrote Hamlet?", r"Shakespeare"),
    ("Who painted the Mona Lisa?", r"(?i)Leonardo|da Vinci"), ("What is the opposite of hot?", r"(?i)cold"),
    ("What is the opposite of up?", r"(?i)down"), ("What is the plural of mouse?", r"(?i)mice"),
    ("What is water made of?", r"(?i)hydrogen|oxygen"), ("At what temperature does water boil?", r"\b(100|212)\b"),
    ("What is frozen water called?", r"\b[Ii]ce\b"), ("What gas do we breathe?", r"(?i)oxygen|air"),
    ("Why is the sky blue?", r"(?i)scatter|light"), ("What is the Sun?", r"(?i)\bstar\b"),
    ("What is a dog?", r"(?i)animal|mammal|domestic"), ("Say hello.", r"(?i)hello"),
    ("Say hello in French.", r"(?i)bonjour|salut"), ("Count from 1 to 5.", r"(?s)1.*2.*3.*4.*5"),
    ("Write one sentence about the sea.", r"(?i)sea|ocean|wave"), ("Write a short poem about the moon.", r"(?i)moon"),
    ("Name three fruits.", r"(?i)apple|banana|orange|berr|grape|mango"), ("Name three colours.", r"(?i)red|blue|green|yellow"),
    ("What is the first letter of the alphabet?", r"\bA\b|\ba\b"), ("Is the Earth flat?", r"(?i)\bno\b|not|round|spher"),
    ("What day comes after Monday?", r"Tuesday"), ("What month comes after March?", r"April"),
    ("Tell me a joke.", r".{10}"), ("What is your name?", r"(?i)SmolLM|\bI'?\s?a?m\b|name"),
    ("What is an atom?", r"(?i)matter|element|nucle|smallest"), ("What is Python?", r"(?i)programming|language|snake"),
    ("Write a Python line that prints hello.", r"print\("), ("Translate 'good morning' to Spanish.", r"(?i)buenos")
)  # yapf: disable
SETTINGS: dict[str, dict[str, Any]] = {
    "the model's own": {},
    "greedy": {"temperature": 0},
    "repetition penalty 1.1": {"repetition_penalty": 1.1},
    "repetition penalty 1.2": {"repetition_penalty": 1.2},
    "min_p 0.1": {"min_p": 0.1},
    "temperature 0.7": {"temperature": 0.7, "top_p": 0.95},
}


@dataclass(frozen=True)
class Answer:
  text: str
  tokens: int
  right: bool
  ended: str  # stop, length or repetition


def ask(url: str, model: str | None, question: str, pattern: str, fields: dict[str, Any]) -> Answer:
  body = {"messages": [{"role": "user", "content": question}], **fields} | ({"model": model} if model else {})
  request = urllib.request.Request(
      f"{url}/v1/chat/completions",
      json.dumps(body).encode(), {"Content-Type": "application/json"}
  )
  with urllib.request.urlopen(request, timeout=600) as response:
    value = json.load(response)
  choice = value["choices"][0]
  text = choice["message"]["content"]
  ended = choice.get("stop_reason") or choice["finish_reason"]
  return Answer(text, value["usage"]["completion_tokens"], re.search(pattern, text) is not None, ended)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--url", default="http://localhost:52415")
  parser.add_argument("--model")
  parser.add_argument("--settings", help=f"only these, separated by commas: {', '.join(SETTINGS)}")
  parser.add_argument("--at-most", type=int, metavar="N", help="max_tokens, which also switches the guard off")
  parser.add_argument("--seed", type=int, default=1)
  parser.add_argument("--show", action="store_true", help="each answer, too")
  arguments = parser.parse_args()
  names = arguments.settings.split(",") if arguments.settings else list(SETTINGS)
  print("| settings | right | ended by itself | cut as a repetition | at the limit | tokens, median | tokens, most |")
  print("|---|---|---|---|---|---|---|")
  for name in names:
    fields = SETTINGS[name] | {"seed": arguments.seed
                               } | ({"max_tokens": arguments.at_most} if arguments.at_most else {})
    with ThreadPoolExecutor(4) as pool:
      asked = [pool.submit(ask, arguments.url, arguments.model, *question, fields) for question in QUESTIONS]
      answers = [future.result() for future in asked]
    ends = [sum(answer.ended == end for answer in answers) for end in ("stop", "repetition", "length")]
    tokens = [answer.tokens for answer in answers]
    right = sum(answer.right for answer in answers)
    cells = [name, right, *ends, round(statistics.median(tokens)), max(tokens)]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    if arguments.show:
      for (question, _), answer in zip(QUESTIONS, answers, strict=True):
        print(f"\n[{'right' if answer.right else 'wrong'}, {answer.ended}, {answer.tokens}] {question}\n{answer.text}")


if __name__ == "__main__":
  main()
