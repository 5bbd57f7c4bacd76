"""What the process of grammars knows of a vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from exo.inference.grammar_process import Vocabulary, _Service


def test_21_line_5_what_ends_an_answer_is_no_text_of_a_constrained_one() -> None:
  """Also where its file takes it for a word: it would end JSON in the middle of a string, as finished."""
  vocabulary = Vocabulary([b'"', b"a", b"END", b"E", b"STOP"], [], [2, 4])
  matcher = vocabulary.matcher('start: /"[A-Za-z]*"/')
  matcher.consume_token(0)
  mask = allocate_token_bitmask(1, 5)
  fill_next_token_bitmask(matcher, mask, 0)
  assert np.unpackbits(mask.view(np.uint8), bitorder="little")[:5].tolist() == [1, 1, 0, 1, 0]


@pytest.mark.parametrize(("grammar", "said", "other"), [
    ('root ::= "caf\\u00e9"', "café", "cafe"), ("root ::= [\\u00e0-\\u00ff]+", "éà", "a"),
    ('root ::= "a\\U0001F600"', "a😀", "a1"), ('root ::= "\\u0041\\\\u00e9"', "A\\u00e9", "Aé"), ('root ::= "\\"\\u0022"', '""', '"')
])  # yapf: disable
def test_21_line_5_letters_of_gbnf_by_their_numbers(grammar: str, said: str, other: str) -> None:
  tokens = [bytes([i]) for i in range(256)] + [b"END"]
  vocabulary = Vocabulary(tokens, [], [256])
  lark = _Service().lark(grammar)
  for text, fits in ((said, True), (other, False)):
    matcher = vocabulary.matcher(lark)
    taken = all(matcher.consume_token(byte) for byte in text.encode())
    assert (taken and matcher.is_accepting()) is fits, (lark, text)
