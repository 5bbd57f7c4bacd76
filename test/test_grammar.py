"""Grammars are compiled once and kept, and what takes long of a vocabulary is done ahead."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from exo.inference.dummy.checkpoint import DummyCheckpoint
from exo.inference.grammar import GrammarCompiler
from exo.inference.grammar_process import _KEPT, Vocabulary
from exo.inference.tokenizer import Tokenizer
from exo.inference.weights.checkpoint import Checkpoint


@pytest.fixture
def vocabulary() -> Vocabulary:
  tokens = [bytes([i]) for i in range(256)] + [b"<eos>"]
  return Vocabulary(tokens, [256], [256])


def test_21_line_3_a_grammar_that_is_known_begins_anew(vocabulary: Vocabulary) -> None:
  grammar = 'start: "ab" | "cd"'
  first, second = vocabulary.matcher(grammar), vocabulary.matcher(grammar)
  assert first.consume_token(ord("a")) and second.consume_token(ord("c"))
  third = vocabulary.matcher(grammar)
  assert third.consume_token(ord("c")) and third.consume_token(ord("d")) and third.is_accepting()
  assert first.consume_token(ord("b")) and not second.is_accepting()


def test_21_line_3_what_is_kept_of_grammars_is_bounded(vocabulary: Vocabulary) -> None:
  for i in range(2 * _KEPT):
    vocabulary.matcher(f'start: "{i}"')
  assert len(vocabulary._kept) == _KEPT
  for i in range(20):
    vocabulary.matcher(f'start: "{i}" /{"a" * 200_000}/')
  assert sum(map(len, vocabulary._kept)) < 2_100_000


def test_21_line_3_a_vocabulary_is_told_ahead() -> None:
  compiler = GrammarCompiler(DummyCheckpoint().tokenizer())
  compiler.prepare().result(60)
  began = time.monotonic()
  compiler.ready()
  assert time.monotonic() - began < 0.05
  assert compiler.check('start: "a"') == []


def test_21_line_3_one_vocabulary_for_many_at_once(smollm2: Checkpoint) -> None:
  """Requests that come while it is being prepared wait for it, and share it."""
  compiler = GrammarCompiler(smollm2.tokenizer())
  compiler.prepare()
  errors: list[Exception] = []

  def ask() -> None:
    try:
      compiler.check('start: "a"')
    except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
      errors.append(error)

  threads = [threading.Thread(target=ask) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert not errors and not any(thread.is_alive() for thread in threads)


@pytest.mark.slow
def test_21_line_3_forty_tools_on_a_quarter_of_a_million_words() -> None:
  sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
  from bench_grammar import MadeUp, grammar_of, tools
  tokenizer = Tokenizer(MadeUp(262_144), frozenset({0}))
  compiler, offered = GrammarCompiler(tokenizer), tools(40)
  compiler.prepare().result(60)
  began = time.monotonic()
  grammar = grammar_of(tokenizer, offered)
  compiler.check(grammar)
  compiler.start(grammar, 4096).apply(np.zeros(262_144, np.float32))
  assert time.monotonic() - began < 1
