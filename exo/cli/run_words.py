"""What the words after `exo run` mean: a model, a prompt, or both."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from exo.errors import ConfigError
from exo.gguf_names import is_gguf

STDIN = "-"  # as the last word: wait for standard input


@dataclass(frozen=True, slots=True)
class RunWords:
  """`single` says that a lone word was taken for a model, which may have been meant as a prompt."""
  model: str | None
  prompt: str | None
  waits_for_input: bool
  single: bool


def run_words(arguments: argparse.Namespace) -> RunWords:
  """Raises `ConfigError` for more than a model and a prompt."""
  words: list[str] = list(arguments.words)
  waits = words[-1:] == [STDIN]
  if waits:
    words.pop()
  model, prompt, single = arguments.run_model, arguments.prompt, False
  if len(words) > 2:
    raise ConfigError(f'a prompt of several words stands in quotes: exo run "{" ".join(words)}"')
  if len(words) == 2:
    if model is not None or prompt is not None:
      raise ConfigError(
          f"{'--model' if prompt is None else '--prompt'} and the words {' '.join(words)!r} say two things: leave one out"
      )
    model, prompt = words
  elif words and model is None and not _is_text(words[0]):
    model, single = words[0], prompt is None
  elif words:
    if prompt is not None:
      raise ConfigError(f"--prompt and the text {words[0]!r} are two prompts: leave one out")
    prompt = words[0]
  if model == "":
    raise ConfigError("the model's name is empty: `exo models` lists them")
  return RunWords(model, prompt, waits, single)


def _is_text(word: str) -> bool:
  """One with a blank is a prompt, unless there is such a file or folder."""
  return any(letter.isspace() for letter in word.strip()) and not _exists(word)


def _exists(word: str) -> bool:
  try:
    return Path(word).expanduser().exists()
  except (OSError, RuntimeError, ValueError):  # too long for a name, as texts are
    return False


def is_path(model: str) -> bool:
  """A model's name that means a file or folder."""
  return is_gguf(model) or model.startswith((".", "/", "~")) or (_exists(model) and Path(model).is_dir())
