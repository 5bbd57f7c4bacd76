"""What the process of grammars knows of a vocabulary."""

from __future__ import annotations

import numpy as np
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from exo.inference.grammar_process import Vocabulary


def test_21_line_5_what_ends_an_answer_is_no_text_of_a_constrained_one() -> None:
  """Also where its file takes it for a word: it would end JSON in the middle of a string, as finished."""
  vocabulary = Vocabulary([b'"', b"a", b"END", b"E", b"STOP"], [], [2, 4])
  matcher = vocabulary.matcher('start: /"[A-Za-z]*"/')
  matcher.consume_token(0)
  mask = allocate_token_bitmask(1, 5)
  fill_next_token_bitmask(matcher, mask, 0)
  assert np.unpackbits(mask.view(np.uint8), bitorder="little")[:5].tolist() == [1, 1, 0, 1, 0]
