"""Issue 22, line 1: answers do not run in circles, on any route, unless somebody wants that."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exo.inference.dummy.checkpoint import DummyCheckpoint
from exo.inference.sampling import TokenLogprob
from exo.networking.messages import TokenDelivery
from exo.orchestration.text_stream import ChoiceText, TextDelta
from exo.repetition import RepetitionGuard, goes_in_circles
from test.support.http import stream_json
from test.support.nodes import NodeProcess, ring

SENTENCE = "The sky is a canvas of light, and its hue is determined by the interplay of these gases. "
TOKENIZER = DummyCheckpoint().tokenizer()
PROSE = " ".join(f"Line {i} says something of its own, {i * 7 % 31}." for i in range(200))


@pytest.mark.parametrize(("text", "circles"), [
    ("One thing. Another thing, which is longer.\n" * 8, True),
    ("A beginning of its own. " + "One thing. Another thing, which is longer.\n" * 8, True),
    (SENTENCE * 6, True),  # within one paragraph
    ("L'Étoile, la Marseur, " + "la France, " * 30, True),
    ("made up of hydrogen, with a small " + "fraction of a " * 24, True),
    ("the cat sat on the mat and the cat sat on the mat, or so they say to the cat. " * 6, True),  # the mark is twice in it
    ("-" * 1200, True),
    ("ab" * 150, True),
    ("-" * 1000, True),
    ("ab" * 149, False),
    ("-" * 999, False),
    ("\n" * 1200, True),
    (SENTENCE * 5, False),
    ("la France, " * 20, False),
    (PROSE, False),
    ("| a | b |\n" * 5, False),
    ("-" * 200 + "\n", False),
    ("0, " * 200, False),
    ("\n" * 500, False),
    ("".join(f"{i} x 7 = {7 * i}\n" for i in range(1, 300)), False),
    ("", False),
])  # yapf: disable
def test_22_line_1_what_is_a_circle(text: str, circles: bool) -> None:
  assert goes_in_circles(text) == circles


def ends_at(text: str, cuts: list[int]) -> int | None:
  """Where the guard ends a text that comes in pieces of these lengths, again and again."""
  guard, at, turn = RepetitionGuard(), 0, 0
  while at < len(text):
    piece = text[at:at + cuts[turn % len(cuts)]]
    if (kept := guard.push(piece)) is not None:
      return at + kept
    at, turn = at + len(piece), turn + 1
  return None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)
@given(st.integers(1, 2000), st.lists(st.integers(1, 90), min_size=1, max_size=5), st.integers(0, 2**32))
def test_22_line_1_the_guard_sees_every_period_wherever_the_text_is_cut(
    period: int, cuts: list[int], seed: int
) -> None:
  letters = random.Random(seed)
  unit = "".join(letters.choice("abcdefghij ") for _ in range(period))
  text = PROSE[:500] + unit * (1200 // period + 9)
  at = ends_at(text, [1])
  assert at is not None and at - 500 <= max(6 * period, 1000) + period + 64
  assert ends_at(text, cuts) == at
  assert ends_at(PROSE, cuts) is None


def deltas(text: str, size: int, **options: Any) -> list[TextDelta]:
  """A choice's, of a text whose tokens come `size` at a time, until it ends."""
  choice, found = ChoiceText(TOKENIZER, 0, **options), []
  data = text.encode()
  for i in range(0, len(data), size):
    tokens = tuple(TokenLogprob(token, -1.0) for token in data[i:i + size])
    found.append(choice.push(TokenDelivery("p", "r", 0, i, tokens, "length" if i + size >= len(data) else "")))
    if found[-1].finish_reason:
      break
  return found


@pytest.mark.parametrize("with_tokens", [False, True])
def test_22_line_1_a_choice_ends_at_the_same_character_however_its_tokens_come(with_tokens: bool) -> None:
  text = "Well. " + SENTENCE * 20
  told = set()
  for size in (1, 2, 7, 64):
    found = deltas(text, size, guarded=True, with_tokens=with_tokens)
    told.add(said := "".join(delta.text for delta in found))
    assert text.startswith(said) and len(said) < 8 * len(SENTENCE)
    assert (found[-1].finish_reason, found[-1].circles, found[-1].stop) == ("stop", True, None)
    assert not any(delta.circles for delta in found[:-1])
    if with_tokens:
      assert b"".join(token.data for delta in found for token in delta.tokens).decode() == said
  assert len(told) == 1
  free = deltas(text, 7, guarded=False)
  assert "".join(delta.text for delta in free) == text and free[-1].finish_reason == "length" and not free[-1].circles
  early = deltas(text, 7, guarded=True, stops=["determined"])
  assert early[-1].stop == "determined" and not early[-1].circles


# what every model says that is held to it, again and again; the byte 256 ends answers
SAYING = "It is a fraction of a fraction, "
CIRCLING: dict[str, Any] = {"grammar": f'root ::= "{SAYING}"+', "logit_bias": {"256": -100}}
SAYING_SCHEMA = {
    "type": "object", "properties": {"a": {"type": "string", "pattern": "^(the same thing again, ){200}$"}}, "required": ["a"],
    "additionalProperties": False
}  # yapf: disable
MOST = 1200


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
  flags = ("--inference-engine", "dummy", "--default-model", "dummy", "--max-generate-tokens", str(MOST))
  with ring(tmp_path_factory.mktemp("circles"), 2, *flags) as started:
    yield started


def test_22_line_1_a_chat_without_a_limit_ends_where_it_goes_in_circles(nodes: list[NodeProcess]) -> None:
  texts = set()
  for node in nodes:
    status, answer = node.chat("hello", n=2, temperature=1, seed=5, **CIRCLING)
    assert status == 200, answer
    for choice in answer["choices"]:
      assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "repetition")
      texts.add(choice["message"]["content"])
    body = {"messages": [{"role": "user", "content": "hello"}], **CIRCLING}
    chunks = stream_json(node, "/v1/chat/completions", body)
    last = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert [(choice["finish_reason"], choice["stop_reason"]) for choice in last] == [("stop", "repetition")]
    assert not any("stop_reason" in chunk["choices"][0] for chunk in chunks[:-1])
    texts.add("".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks))
  assert len(texts) == 1 and texts.pop().count(SAYING) in range(8, 14)  # cut at one and the same character


@pytest.mark.parametrize("wanted", [
    {"max_tokens": 900}, {"max_completion_tokens": 900}, {"repetition_guard": False}
])  # yapf: disable
def test_22_line_1_who_says_how_much_he_wants_gets_it(nodes: list[NodeProcess], wanted: dict[str, Any]) -> None:
  status, answer = nodes[0].chat("hello", seed=1, **CIRCLING, **wanted)
  assert status == 200, answer
  (choice, ) = answer["choices"]
  assert "stop_reason" not in choice
  whole = (900 if any("tokens" in name for name in wanted) else MOST) // len(SAYING)  # a grammar ends at a whole round
  assert choice["message"]["content"] == SAYING * whole


def test_22_line_1_who_wants_no_end_gets_none(nodes: list[NodeProcess]) -> None:
  """As benchmarks do, whose answers are one letter, and no word."""
  only = {"logit_bias": {"97": 100}}
  ended = nodes[0].chat("hello", **only)[1]
  assert ended["choices"][0]["stop_reason"] == "repetition" and 1000 <= ended["usage"]["completion_tokens"] < 1100
  endless = nodes[0].chat("hello", ignore_eos=True, **only)[1]
  assert endless["choices"][0]["finish_reason"] == "length" and endless["usage"]["completion_tokens"] == MOST


def test_22_line_1_the_guard_is_on_every_route(nodes: list[NodeProcess]) -> None:
  text = nodes[1].post("/v1/completions", {"prompt": "hello", "max_tokens": -1, **CIRCLING})[1]["choices"][0]
  assert (text["finish_reason"], text["stop_reason"]) == ("stop", "repetition")
  few = nodes[1].post("/v1/completions",
                      {"prompt": "hello", **CIRCLING})[1]["choices"][0]  # 16 tokens, as OpenAI has it
  assert few["finish_reason"] == "length" and "stop_reason" not in few
  schema = {"format": {"type": "json_schema", "name": "list", "schema": SAYING_SCHEMA}}
  response = nodes[0].post("/v1/responses", {"input": "hello", "text": schema})[1]
  assert response["status"] == "completed" and response["exo"]["stop_reason"] == "repetition"
  free = nodes[0].post("/v1/responses", {"input": "hello", "text": schema, "repetition_guard": False})[1]
  assert "stop_reason" not in free["exo"]
  shown = [of["output"][0]["content"][0]["text"] for of in (response, free)]
  assert shown[1].startswith(shown[0]) and len(shown[1]) > 2 * len(shown[0])
  asked = {"messages": [{"role": "user", "content": "hello"}], "format": SAYING_SCHEMA, "stream": False}
  ollama = nodes[0].post("/api/chat", asked)[1]
  assert (ollama["done_reason"], ollama["stop_reason"]) == ("stop", "repetition")
  bounded = nodes[0].post("/api/chat", asked | {"options": {"num_predict": 900}})[1]
  assert "stop_reason" not in bounded and len(bounded["message"]["content"]) > 2 * len(ollama["message"]["content"])


def test_22_line_1_a_node_may_have_no_guard(tmp_path: Path) -> None:
  flags = ("--inference-engine", "dummy", "--default-model", "dummy", "--max-generate-tokens", "700")
  with ring(tmp_path, 1, *flags, "--no-repetition-guard") as (node, ):
    choice = node.chat("hello", **CIRCLING)[1]["choices"][0]
    assert "stop_reason" not in choice and choice["message"]["content"] == SAYING * (700 // len(SAYING))
