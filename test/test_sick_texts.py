"""Lines 5, 6 and 8, fault 21: what clients send and models say may be anything, tokens that are no text, prompts of any
length, words that a model lacks.
"""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from exo.api.aside import LARGE
from exo.api.body_room import BodyRoom
from exo.api.json_depth import too_many_values
from exo.errors import InvalidRequestError, QueueFullError
from exo.inference.backend_vocabulary import BackendVocabulary
from exo.inference.chat_template import render_chat
from exo.inference.detokenizer import text_before
from exo.inference.dummy.checkpoint import DummyCheckpoint
from exo.inference.gguf_tokenizer import gguf_tokenizer
from exo.inference.grammar import GrammarCompiler
from exo.inference.hf_tokenizer import hf_tokenizer
from exo.inference.sampling import TokenLogprob
from exo.inference.tokenizer import Tokenizer, TooManyTokensError
from exo.inference.weights.checkpoint import Checkpoint
from exo.inference.whole_characters import whole_characters
from exo.networking.messages import TokenDelivery
from exo.orchestration.text_stream import ChoiceText, _overlap
from test.support.gguf_words import backend_of, write_words
from test.support.nodes import NodeProcess, ring

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def sentencepiece(prefix: bool) -> dict[str, Any]:
  """A byte-fallback vocabulary in miniature, as Gemma's (without `prefix`) and Llama 2's (with it) are."""
  tokens = ["<unk>", "<s>", "</s>", *BYTES, "▁", "a", "b", "▁a", "ab", "▁ab", "é", "日", "😀", "  ", "<mark>"]
  types = [2, 3, 3, *[6] * 256, *[1] * 9, 4, 3]
  return {
      "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types,
      "tokenizer.ggml.scores": [float(-i) for i in range(len(tokens))], "tokenizer.ggml.add_space_prefix": prefix,
      "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2
  }


@pytest.fixture(scope="module")
def tokenizers(smollm2: Checkpoint, goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
  folder, found = tmp_path_factory.mktemp("words"), {}
  for prefix, name in ((False, "byte fallback"), (True, "byte fallback, space before")):
    meta = sentencepiece(prefix)
    backend = BackendVocabulary(backend_of(meta))
    found[name] = gguf_tokenizer(meta, write_words(folder / f"{name}.gguf", meta))
    found[f"{name}, by tokenizers"] = Tokenizer(backend, frozenset({2}), 1)
  return found | {
      "byte level": smollm2.tokenizer(), "bytes": DummyCheckpoint().tokenizer(),
      "words": hf_tokenizer(goldens / "llama")
  }


def library_text(tokenizers: dict[str, Tokenizer], name: str, ids: Sequence[int]) -> str | None:
  """What the `tokenizers` library makes of tokens, where it has this vocabulary."""
  of = tokenizers.get(f"{name}, by tokenizers", tokenizers[name]).vocabulary
  return of.backend.decode(ids, skip_special_tokens=True) if isinstance(of, BackendVocabulary) else None


def ids_of(rng: random.Random, tokenizer: Tokenizer, count: int) -> list[int]:
  """Any tokens at all: bytes, words, special ones, parts of characters, and ids that there are not."""
  cut = [i for c in ("日", "😀", "é") for i in tokenizer.encode(c)]
  absent = [tokenizer.vocab_size, tokenizer.vocab_size + 7, 2**31, 2**32, 2**70, -1]
  special = sorted(tokenizer.eos_ids)
  return [
      rng.choice((rng.randrange(tokenizer.vocab_size), rng.choice(cut or [0]), rng.choice(absent), rng.choice(special)))
      for _ in range(count)
  ]


def streamed(tokenizer: Tokenizer, ids: Sequence[int], after: Sequence[int] = (),
             **more: bool) -> tuple[list[str], str]:
  detokenizer = tokenizer.detokenizer(after, **more)
  return [detokenizer.push([i]) for i in ids], detokenizer.finish()


def real(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
  return [i for i in ids if 0 <= i < tokenizer.vocab_size]


def test_line_6_no_tokens_at_all_make_a_text_stream_raise(tokenizers: dict[str, Tokenizer]) -> None:
  rng = random.Random(6)
  for name, tokenizer in tokenizers.items():
    for _ in range(300):
      ids, after = ids_of(rng, tokenizer, rng.randrange(20)), ids_of(rng, tokenizer, rng.choice((0, 1, 12)))
      pieces, last = streamed(tokenizer, ids)
      text = "".join(pieces) + last
      library = library_text(tokenizers, name, real(tokenizer, ids))
      assert text == tokenizer.decode(ids), (name, ids)
      if library is not None and "\ufffd" not in library:  # where it is defined: of what is broken the library keeps less
        assert text == library, (name, ids)
      streamed(tokenizer, ids, after)
      streamed(tokenizer, ids, after, echoed=True)
      text_before(tokenizer, after)


def test_line_6_a_character_in_bytes_is_whole_among_broken_ones(tokenizers: dict[str, Tokenizer]) -> None:
  for tokenizer in (tokenizers["byte fallback"], tokenizers["byte fallback, space before"]):
    whole, broken = [3 + byte for byte in "語".encode()], [3 + 0xe6]
    pieces, last = streamed(tokenizer, [*broken, *whole, *broken, *tokenizer.encode("ab"), *whole[:2]])
    assert "".join(pieces).replace(" ", "") == "\ufffd語\ufffdab" and last == "\ufffd"


@pytest.mark.parametrize("kind", ["byte fallback", "byte level", "bytes"])
def test_line_6_what_a_prompt_began_is_not_in_the_answer(tokenizers: dict[str, Tokenizer], kind: str) -> None:
  """Only what is new: the character that the answer completes, and nothing of a prompt that stays broken."""
  tokenizer = tokenizers[kind]
  cut = next(ids for c in "語鿿𒀀" if len(ids := tokenizer.encode(c)) > 1)
  character, prompt, plain = tokenizer.decode(cut), tokenizer.encode("ab ab"), tokenizer.encode("ab")
  for half in range(1, len(cut)):
    after = [*prompt, *cut[:half]]
    for echoed in (False, True):
      pieces, last = streamed(tokenizer, cut[half:], after, echoed=echoed)
      assert "".join(pieces) + last == character
    assert "".join(streamed(tokenizer, plain, after)[0]) == "ab"
    assert streamed(tokenizer, [], after) == ([], "")
    assert text_before(tokenizer, after) == tokenizer.decode(prompt)
    whole = tokenizer.decode([*after, *plain])
    assert text_before(tokenizer, after) + "".join(streamed(tokenizer, plain, after, echoed=True)[0]) == whole


def test_line_6_the_bytes_of_tokens_are_those_of_the_text(tokenizers: dict[str, Tokenizer]) -> None:
  rng = random.Random(23)
  for name, tokenizer in tokenizers.items():
    for _ in range(100):
      ids = real(tokenizer, ids_of(rng, tokenizer, 12))
      choice, text, data = ChoiceText(tokenizer, 0, with_tokens=True), "", b""
      for n, token_id in enumerate(ids):
        finish = "length" if n + 1 == len(ids) else ""
        delta = choice.push(TokenDelivery("plan", "request", 0, n, (TokenLogprob(token_id, -1.0), ), finish))
        text, data = text + delta.text, data + b"".join(token.data for token in delta.tokens)
      assert data.decode("utf-8", "replace") == text, (name, ids)


def test_line_6_text_that_is_no_text_is_tokenized_all_the_same(tokenizers: dict[str, Tokenizer]) -> None:
  for tokenizer in tokenizers.values():
    for text in ("\ud800", "a\udfff\x00b", "\x00" * 9, "\uffff\U0010ffff", "\ud83d\ude00"):
      assert all(0 <= i < tokenizer.vocab_size for i in tokenizer.encode(text))
  assert tokenizers["bytes"].decode(tokenizers["bytes"].encode("\ud83d\ude00")) == "😀"


# words that the model lacks


@pytest.fixture(scope="module")
def wordy(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  """A node whose model's tokenizer knows two words more than its embedding."""
  home = tmp_path_factory.mktemp("wordy")
  folder = home / "models" / "wordy"
  shutil.copytree(goldens / "llama", folder)
  tokenizer = json.loads((folder / "tokenizer.json").read_text())
  words = tokenizer["model"]["vocab"]
  assert len(words) == 320
  words["sick"] = 320
  added = dict(tokenizer["added_tokens"][-1], id=321, content="<extra>")
  tokenizer["added_tokens"].append(added)
  (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
  with ring(home, 1, "--model-dir", str(home / "models"), "--default-model", "wordy") as nodes:
    yield nodes[0]


def test_line_5_a_word_that_the_embedding_lacks_is_its_own_requests_error(wordy: NodeProcess) -> None:
  with ThreadPoolExecutor(4) as pool:
    well = pool.submit(wordy.post, "/v1/completions", {"prompt": "t5 t7 t9", "max_tokens": 200, "temperature": 0})
    chats = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat")
    for word, name in (("sick", "320 ('sick')"), ("<extra>", "321 ('<extra>')")):
      said = f"t5 {word} t6"
      messages = [{"role": "user", "content": said}]
      for path, body in (("/v1/chat/completions", {"messages": messages}),
                         ("/v1/chat/completions", {"messages": messages, "stream": True}),
                         ("/v1/completions", {"prompt": said}), ("/v1/completions", {"prompt": said, "echo": True}),
                         ("/v1/embeddings", {"input": ["t5", said]}), ("/v1/responses", {"input": said}),
                         ("/v1/messages", {"messages": messages, "max_tokens": 3}),
                         ("/api/chat", {"messages": messages, "stream": False}),
                         ("/api/generate", {"prompt": said, "raw": True, "stream": False})):  # yapf: disable
        if word == "<extra>" and path in chats:
          continue  # a special token, whose name in a message is letters
        status, answer = wordy.post(path, body)
        assert status == 400 and name in json.dumps(answer, ensure_ascii=False), (path, status, answer)
    status, answer = wordy.post("/v1/completions", {"prompt": [5, 320]})
    assert status == 400 and "320" in answer["error"]["message"]
    status, answer = wordy.post("/v1/completions", {"prompt": "t5", "logit_bias": {"320": 5}})
    assert status == 400 and answer["error"]["param"] == "logit_bias"
    status, answer = well.result()
  assert status == 200 and answer["usage"]["completion_tokens"] > 0
  assert wordy.get("/health")[0] == 200


# what is too much


@pytest.fixture(scope="module")
def node(model_home: Path) -> Iterator[NodeProcess]:
  with ring(model_home, 1) as nodes:
    assert nodes[0].chat("hi", max_tokens=1)[0] == 200
    yield nodes[0]


@contextmanager
def health_answers(node: NodeProcess) -> Iterator[list[float]]:
  """How long each health check takes while the block runs; the list fills."""
  took: list[float] = []
  end = threading.Event()

  def watch() -> None:
    while True:  # at least once, however short the block is
      begun = time.monotonic()
      assert node.get("/health", 60)[0] == 200
      took.append(time.monotonic() - begun)
      if end.wait(0.02):
        return

  with ThreadPoolExecutor(1) as pool:
    watching = pool.submit(watch)
    try:
      yield took
    finally:
      end.set()
      watching.result()


LONG = 8 * 2**20
TOO_LONG = {
    "words, chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello world " * (LONG // 12)}]}),
    "one letter, streamed":
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * LONG}], "stream": True}),
    "parts": ("/v1/chat/completions", {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "日本語" * 99}] * 9}] * 999
    }),
    "completions": ("/v1/completions", {"prompt": ["ok", "1" * LONG]}),
    "ids": ("/v1/completions", {"prompt": [1] * 1_000_000}),
    "just over, completions": ("/v1/completions", {"prompt": "hello world " * 50_000}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": " " * LONG}], "max_tokens": 3}),
    "count": ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "a b" * (LONG // 3)}]}),
    "responses": ("/v1/responses", {"input": "é" * (LONG // 6)}),
    "embeddings": ("/v1/embeddings", {"input": "hello " * (LONG // 6)}),
    "token/encode": ("/v1/chat/token/encode", {"messages": [{"role": "user", "content": "hello " * (LONG // 6)}]}),
    "ollama": ("/api/chat", {"messages": [{"role": "user", "content": "hello " * (LONG // 6)}], "stream": False}),
    "ollama, raw": ("/api/generate", {"prompt": "hello " * (LONG // 6), "raw": True, "stream": False}),
    "tools": ("/v1/chat/completions", {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "f", "description": "word " * (LONG // 5)}}]
    }),
}  # yapf: disable


@pytest.mark.parametrize("name", TOO_LONG)
def test_line_8_a_prompt_that_cannot_fit_is_refused_while_others_are_served(node: NodeProcess, name: str) -> None:
  path, body = TOO_LONG[name]
  data = json.dumps(body).encode()
  with health_answers(node) as took, ThreadPoolExecutor(3) as pool:
    sent = [pool.submit(node.post, path, data) for _ in range(2)]
    status, answer = node.chat("Say hi", max_tokens=2)
    assert status == 200 and answer["usage"]["completion_tokens"]
    for one in sent:
      status, answer = one.result()
      assert status == 400 and "8192" in json.dumps(answer), answer
      assert "context" in json.dumps(answer) or "most" in json.dumps(answer)
  assert took and max(took) < 2


def test_line_8_both_numbers_are_told(node: NodeProcess) -> None:
  """Exactly where the prompt is near the context, at least where it is far from it."""
  for n, told in ((8192, "has 8192 tokens"), (8200, "has 8200 tokens"), (100_000, "has at least ")):
    status, answer = node.post("/v1/completions", {"prompt": "a" + " b" * (n - 1), "max_tokens": 1})
    assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
    assert answer["error"]["param"] == "prompt"
    assert told in answer["error"]["message"] and "is 8192" in answer["error"]["message"], answer


MANY = {
    "biases": b'{"messages":[{"role":"user","content":"hi"}],"logit_bias":{' +
              b",".join(b'"%d":1' % i for i in range(500_000)) + b"}}",
    "lists": b'{"messages":[{"role":"user","content":"hi"}],"metadata":[' + b"[1]," * 2_000_000 + b"1]}",
    "numbers": b'{"prompt":[' + b"1," * 5_000_000 + b"1]}",
    "stops": b'{"messages":[{"role":"user","content":"hi"}],"stop":[' + b'"a",' * 2_000_000 + b'"a"]}',
    "a schema": b'{"messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function","function":{"name":"f",'
                b'"parameters":{' + b",".join(b'"%d":{}' % i for i in range(900_000)) + b"}}}]}",
}  # yapf: disable


@pytest.mark.parametrize("name", MANY)
def test_line_8_bodies_of_many_values_are_refused_unbuilt(node: NodeProcess, name: str) -> None:
  with health_answers(node) as took:
    status, answer = node.post("/v1/chat/completions", MANY[name])
  assert status == 400 and answer["error"]["code"] == "json_values", answer
  assert max(took) < 2


def test_line_8_values_are_counted_outside_of_texts() -> None:
  assert too_many_values(json.dumps({"a": '[]{},"\\' * 999, "b": [1] * 10}).encode(), 5, 10) is None
  assert too_many_values(json.dumps(["a\\"] * 11).encode(), 11, 99)
  assert too_many_values(json.dumps([1] * 12).encode(), 99, 10)
  rng = random.Random(8)
  for _ in range(200):
    texts = ["".join(rng.choices('\\"[]{},:ab\n', k=rng.randrange(30))) for _ in range(rng.randrange(1, 30))]
    data = json.dumps([{"k": text} for text in texts]).encode()
    n = 1 + 3 * len(texts)  # the list; of each its object, key and text
    assert too_many_values(data, n, len(texts) - 1) is None
    assert too_many_values(data, n - 1, len(texts)) and (len(texts) < 2 or too_many_values(data, n, len(texts) - 2))


def test_line_8_a_long_text_lets_other_threads_run(node: NodeProcess, smollm2: Checkpoint) -> None:
  """Tokenizing gives the interpreter free, whatever the text is."""
  tokenizer = smollm2.tokenizer()
  for unit in ("hello world ", "a", " ", "1", "日本"):
    text, turns = unit * (500_000 // len(unit)), 0
    with ThreadPoolExecutor(1) as pool:
      work = pool.submit(tokenizer.encode, text)
      while not work.done():
        turns += 1
        time.sleep(0.001)
    assert turns > 5, unit


def test_line_8_the_encoding_within_bounds_is_the_encoding(tokenizers: dict[str, Tokenizer]) -> None:
  rng = random.Random(80)
  for tokenizer in tokenizers.values():
    for _ in range(20):
      text = "".join(rng.choice(("hello", " ", "日", "1", "\n", "t5 ")) for _ in range(rng.randrange(200)))
      ids = tokenizer.encode(text, add_bos=True)
      assert tokenizer.encode_within(text, len(ids), add_bos=True) == ids
      if ids:
        with pytest.raises(TooManyTokensError) as error:
          tokenizer.encode_within(text, len(ids) - 1, add_bos=True)
        assert error.value.count <= len(ids)


# templates and grammars


SICK_TEMPLATES = {
    "one that never ends": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "one long call": "{{ (('b a ' * 7000000).split()|sort)|length }}{% for a in range(99999) %}{% for b in range(99999) %}"
                     "{% endfor %}{% endfor %}",
}  # yapf: disable


@pytest.mark.parametrize("name", SICK_TEMPLATES)
def test_line_8_a_sick_template_is_ended_and_holds_nobody(goldens: Path, tmp_path: Path, name: str) -> None:
  folder = tmp_path / "models" / "sick"
  shutil.copytree(goldens / "llama", folder)
  (folder / "chat_template.jinja").write_text(SICK_TEMPLATES[name])
  with ring(tmp_path, 1, "--model-dir", str(tmp_path / "models"), "--default-model", "sick") as nodes:
    with health_answers(nodes[0]) as took:
      status, answer = nodes[0].chat("t5", max_tokens=1)
    assert status == 400 and "template" in answer["error"]["message"], answer
    assert max(took) < 2
    assert nodes[0].post("/v1/completions", {"prompt": "t5", "max_tokens": 1})[0] == 200


def test_line_8_a_long_chat_is_rendered_as_a_short_one_is(smollm2: Checkpoint) -> None:
  tokenizer = smollm2.tokenizer()
  short, long = "a\ud800 b", "a\ud800 b" + "x" * 200_000
  for extra in ({}, {"wide": 2**80}):
    rendered = [tokenizer.render_chat([{"role": "user", "content": c}], extra=extra) for c in (short, long)]
    assert whole_characters(rendered[0]) == rendered[1].replace("x" * 200_000, "")
  with pytest.raises(InvalidRequestError, match="refuses"):
    render_chat("{{ raise_exception('no') }}", [{"role": "user", "content": long}], special_tokens={})


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def test_line_8_a_grammar_goes_on_when_its_process_dies(smollm2: Checkpoint) -> None:
  """With another process the same text; a first grammar lets other threads run, since it is prepared elsewhere."""
  tokenizer = smollm2.tokenizer()
  compiler = GrammarCompiler(tokenizer)
  grammar = "start: j\nj: %json " + json.dumps(SCHEMA)

  def text(kill_after: int) -> str:
    constraint, rng, said = compiler.start(grammar, 40), np.random.default_rng(3), list[int]()
    while True:
      logits = rng.normal(size=tokenizer.vocab_size).astype(np.float32)
      constraint.apply(logits)
      token_id = next((i for i in map(int, (-logits).argsort()[:64]) if constraint.fits(i)), constraint.way_out)
      constraint.accept(token_id)
      if token_id in tokenizer.eos_ids:
        return tokenizer.decode(said)
      said.append(token_id)
      if len(said) == kill_after:
        children = [c for c in psutil.Process().children() if "exo.inference.grammar_process" in c.cmdline()]
        assert len(children) == 1
        children[0].kill()

  whole = text(0)
  json.loads(whole)
  assert [text(1), text(2), text(3)] == [whole] * 3
  with pytest.raises(InvalidRequestError, match="schema"):
    compiler.check("start: (((")
  with pytest.raises(InvalidRequestError, match="too large"):
    compiler.check("x" * 300_000)


def test_line_8_nothing_of_a_node_is_left_when_it_ends(dummy_ring: list[NodeProcess]) -> None:
  node = dummy_ring[0]
  body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 40}
  schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
  status, answer = node.post("/v1/chat/completions", body | {"response_format": schema})
  assert status == 200 and isinstance(json.loads(answer["choices"][0]["message"]["content"])["a"], int)
  children = psutil.Process(node.process.pid).children(recursive=True)
  assert children
  node.kill()
  assert not psutil.wait_procs(children, timeout=10)[1]


def test_line_8_large_bodies_have_room_for_so_many_and_give_it_back() -> None:
  room = BodyRoom(4 * LARGE)
  with room.hold(3 * LARGE), room.hold(10):
    with pytest.raises(QueueFullError), room.hold(2 * LARGE):
      pass
    with room.hold(LARGE) as settle:
      assert room.held == 4 * LARGE
      settle(10)  # it turned out to be small
      assert room.held == 3 * LARGE
  assert room.held == 0


def test_line_8_a_stop_string_of_any_length_is_found_where_it_begins() -> None:
  """Against the definition, tried at every length."""
  rng = random.Random(9)
  for _ in range(3000):
    held = "".join(rng.choices("ab", k=rng.randrange(1, 12)))
    stop = "".join(rng.choices("ab", k=rng.randrange(1, 8)))
    longest = max(n for n in range(min(len(held), len(stop) - 1) + 1) if stop.startswith(held[len(held) - n:]))
    assert _overlap(held, stop) == longest, (held, stop)
