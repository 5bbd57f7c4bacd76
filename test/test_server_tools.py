"""What clients of other servers ask beside answers: gaps, ranks, tokens, templates: http_api.md 28 and 44."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from exo.inference.backend_vocabulary import BackendVocabulary
from exo.inference.fill_in import _KNOWN, FillIn, fill_in_of
from exo.inference.tokenizer import Tokenizer
from test.support.http import assert_error, call, raw_stream, stream_json
from test.support.nodes import NodeProcess, ring

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  with ring(tmp_path_factory.mktemp("tools"), 1, "--inference-engine", "dummy", "--default-model", "dummy") as started:
    yield started[0]


def tokenizer_with(*names: str) -> Tokenizer:
  """Of bytes, and of tokens with these names."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_tokens([tokenizers.AddedToken(name, special=False, normalized=False) for name in names])
  return Tokenizer(BackendVocabulary(backend), frozenset())


@pytest.mark.parametrize("form", _KNOWN, ids=lambda form: form.prefix)
def test_21_line_9_requirement_28_each_familys_tokens(form: FillIn) -> None:
  tokenizer = tokenizer_with(*form.names)
  filler = fill_in_of(tokenizer)
  assert filler is not None and filler.form == form
  ids, _ = filler.prompt("before", "after")
  shown = [tokenizer.token_text(i) for i in ids]
  marks = [name for name in shown if name in form.names]
  order = (form.suffix, form.prefix) if form.suffix_first else (form.prefix, form.suffix)
  assert marks == [name for name in (*order, form.middle) if name]
  parts = ("after", "before") if form.suffix_first else ("before", "after")
  assert "".join(shown) == f"{order[0]}{parts[0]}{order[1]}{parts[1]}{form.middle}"
  assert set(filler.end_ids) == {tokenizer.id_of(name) for name in form.names}


def test_21_line_9_marks_in_a_clients_text_are_letters() -> None:
  form = _KNOWN[0]
  tokenizer = tokenizer_with(*form.names)
  filler = fill_in_of(tokenizer)
  assert filler is not None
  ids, _ = filler.prompt(f"a{form.suffix}b", "c", [("x.py", f"{form.file}text")])
  assert ids.count(tokenizer.id_of(form.suffix) or 0) == 1 and ids.count(tokenizer.id_of(form.file) or 0) == 2
  text = tokenizer.decode(ids, skip_special=False)
  assert text.endswith(f"{form.prefix}a{form.suffix}b{form.suffix}c{form.middle}")
  assert text.startswith(f"{form.repo}project\n{form.file}x.py\n")
  assert fill_in_of(tokenizer_with("<|im_start|>")) is None


@pytest.mark.parametrize(("before", "after", "files", "shown"), [
    ("a" * 100, "b" * 100, [], ("", "a" * 15, "b" * 5)), ("a" * 100, "b", [], ("", "a" * 19, "b")),
    ("a", "b" * 100, [], ("", "a", "b" * 19)), ("", "", [("x", "old"), ("y", "the newest!")], ("y\nthe newest!\n<|file_sep|>file\n", "", "")),
    ("aaa", "bb", [], ("", "aaa", "bb")), ("a" * 100, "", [("x", "old")], ("", "a" * 20, ""))
])  # yapf: disable
def test_21_line_9_what_is_next_to_the_gap_stays(
    before: str, after: str, files: list[tuple[str, str]], shown: tuple[str, str, str]
) -> None:
  form = _KNOWN[0]
  filler = fill_in_of(tokenizer_with(*form.names))
  assert filler is not None
  ids, is_cut = filler.prompt(before, after, files, 23)
  assert len(ids) <= 23 and is_cut is (before != "aaa")
  others, _, rest = filler.tokenizer.decode(ids, skip_special=False).partition(form.prefix)
  left, _, right = rest.partition(form.suffix)
  assert (left, right) == (shown[1], shown[2] + form.middle) and others.endswith(shown[0])


def test_21_line_9_requirement_28_a_model_without_gaps_says_so(node: NodeProcess) -> None:
  error = assert_error(*node.post("/v1/completions", {"prompt": "a", "suffix": "b"}), 400)
  assert error["param"] == "suffix" and "cannot fill gaps" in error["message"]
  assert assert_error(*node.post("/infill", {"input_prefix": "a", "input_suffix": "b"}), 400)["param"] == "input_suffix"
  assert "suffix" in node.post("/api/generate", {"prompt": "a", "suffix": "b"})[1]["error"]


def test_21_line_9_requirement_44_rerank(node: NodeProcess) -> None:
  body = {"model": "dummy", "query": "a text", "documents": ["other", "a text", {"text": "a tent"}], "top_n": 2}
  for path in ("/v1/rerank", "/rerank", "/v2/rerank"):
    status, answer = node.post(path, body)
    assert status == 200 and answer["object"] == "list" and answer["model"] == "dummy"
    best = answer["results"]
    assert next(result["index"]
                for result in best) == 1 and len(best) == 2 and best[0]["document"] == {"text": "a text"}
    assert abs(best[0]["relevance_score"] - 1) < 1e-5 and best[1]["relevance_score"] <= best[0]["relevance_score"]
    assert answer["usage"]["total_tokens"] > 0 and "cosine" in answer["exo"]["score"]
  assert "document" not in node.post("/rerank", body | {"return_documents": False})[1]["results"][0]
  plain = node.post("/rerank", {"query": "a", "texts": ["b", "a"]})[1]
  assert plain[0]["index"] == 1 and set(plain[0]) == {"index", "score"}
  for wrong in ({"query": "a", "documents": []}, {"query": "a", "documents": [1]}, {"query": "", "documents": ["a"]}):
    assert_error(*node.post("/v1/rerank", wrong), 400)


def test_21_line_9_requirement_44_score(node: NodeProcess) -> None:
  one = node.post("/v1/score", {"model": "dummy", "text_1": "a text", "text_2": ["a text", "other"]})[1]
  scores = [item["score"] for item in one["data"]]
  assert abs(scores[0] - 1) < 1e-5 and scores[1] < scores[0] and one["data"][1]["index"] == 1
  pairs = node.post("/score", {"queries": ["a", "b"], "documents": ["a", "a"]})[1]["data"]
  assert abs(pairs[0]["score"] - 1) < 1e-5 and pairs[1]["score"] < 1
  for wrong in ({"text_1": "a"}, {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, {"text_1": "a", "text_2": []}):
    assert_error(*node.post("/v1/score", wrong), 400)


def test_21_line_9_dimensions_of_embeddings(node: NodeProcess) -> None:
  whole = np.array(node.post("/v1/embeddings", {"input": "a text"})[1]["data"][0]["embedding"])
  short = np.array(node.post("/v1/embeddings", {"input": "a text", "dimensions": 5})[1]["data"][0]["embedding"])
  assert np.allclose(short, whole[:5] / np.linalg.norm(whole[:5]), atol=1e-6)
  assert assert_error(*node.post("/v1/embeddings", {"input": "a", "dimensions": 10**6}), 400)["param"] == "dimensions"
  assert len(node.post("/v1/embeddings", {"input": ["a"] * 100})[1]["data"]) == 100


def test_21_line_9_requirement_44_tokens(node: NodeProcess) -> None:
  assert node.post("/tokenize", {"content": "héllo"})[1]["tokens"] == list("héllo".encode())
  pieces = node.post("/tokenize", {"content": "hé", "with_pieces": True})[1]["tokens"]
  assert pieces == [{"id": 104, "piece": "h"}, {"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}]
  told = node.post("/tokenize", {"model": "dummy", "prompt": "hi", "return_token_strs": True})[1]
  assert told["count"] == 2 and told["max_model_len"] == 8192 and told["token_strs"] == ["h", "i"]
  assert node.post("/tokenize", {"content": ""})[1]["tokens"] == []
  assert node.post("/detokenize", {"tokens": list(b"hello")})[1]["content"] == "hello"
  for path, wrong in (("/tokenize", {}), ("/tokenize", {"content": "a", "parse_special": False}),
                      ("/detokenize", {"tokens": [10**6]}), ("/detokenize", {"tokens": [-1]})):
    assert_error(*node.post(path, wrong), 400)
  prompt = node.post("/apply-template", {"messages": HELLO})[1]["prompt"]
  encoded = node.post("/v1/chat/token/encode", {"messages": HELLO})[1]
  assert prompt == encoded["encoded_prompt"]


def test_21_line_9_requirement_44_props_and_slots(node: NodeProcess) -> None:
  props = node.get("/props")[1]
  assert props["model_path"] == "dummy" and props["default_generation_settings"]["n_ctx"] == 8192
  slots = node.get("/slots")[1]
  assert len(slots) == node.get("/props")[1]["total_slots"] and not any(slot["is_processing"] for slot in slots)
  assert_error(*node.get("/props?model=nosuch"), 404)


def test_21_line_9_timings(node: NodeProcess) -> None:
  asked = {"messages": HELLO, "max_tokens": 5}
  timings = node.post("/v1/chat/completions", asked)[1]["timings"]
  assert timings["predicted_n"] == 5 and timings["prompt_ms"] > 0 and timings["predicted_per_second"] > 0
  assert node.post("/v1/completions", {"prompt": "hello", "max_tokens": 5})[1]["timings"]["predicted_n"] == 5
  chunks = stream_json(node, "/v1/chat/completions", asked)
  assert [("timings" in chunk) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
  assert all("timings" in c for c in stream_json(node, "/v1/chat/completions", asked | {"timings_per_token": True}))
  assert "timings" in stream_json(node, "/v1/completions", {"prompt": "hello", "max_tokens": 5})[-1]


FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>")


@pytest.fixture(scope="module")
def filler(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  """A node with a tiny model whose vocabulary has marks of gaps."""
  folder = tmp_path_factory.mktemp("models") / "filler"
  folder.mkdir()
  for file in (goldens / "qwen2").iterdir():
    if file.suffix in (".json", ".safetensors", ".jinja"):
      (folder / file.name).write_bytes(file.read_bytes())
  vocabulary = json.loads((folder / "tokenizer.json").read_text())
  last = max(vocabulary["model"]["vocab"].values())
  ids = range(last - len(FIM) + 1, last + 1)
  gone = {name for name, i in vocabulary["model"]["vocab"].items() if i in ids}
  kept = {name: i for name, i in vocabulary["model"]["vocab"].items() if i not in ids}
  vocabulary["model"]["vocab"] = kept | dict(zip(FIM, ids, strict=True))
  if "merges" in vocabulary["model"]:
    merges = [m if isinstance(m, list) else m.split(" ") for m in vocabulary["model"]["merges"]]
    vocabulary["model"]["merges"] = [m for m in merges if "".join(m) not in gone and not gone & set(m)]
  vocabulary["added_tokens"] = [t for t in vocabulary["added_tokens"] if t["id"] not in ids] + [{
      "id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
      "special": True
  } for name, i in zip(FIM, ids, strict=True)]
  (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
  arguments = ("--model-dir", str(folder.parent), "--default-model", "filler", "--inference-engine", "onnx")
  with ring(tmp_path_factory.mktemp("filling"), 1, *arguments) as started:
    yield started[0]


def test_21_line_9_requirement_28_suffix_is_filled(filler: NodeProcess) -> None:
  status, answer = filler.post("/v1/completions", {"prompt": "def f(", "suffix": "\n", "max_tokens": 4})
  assert status == 200 and answer["usage"]["prompt_tokens"] > 3, answer
  status, there = filler.post("/infill", {"input_prefix": "def ", "prompt": "f(", "input_suffix": "\n", "n_predict": 4})
  assert status == 200 and there["content"] == answer["choices"][0]["text"] and there["stop"] and there["timings"], there
  assert there["tokens_evaluated"] == answer["usage"]["prompt_tokens"]
  generated = filler.post(
      "/api/generate",
      {"prompt": "def f(", "suffix": "\n", "stream": False, "options": {"num_predict": 4, "temperature": 0}}
  )[1]
  assert generated["response"] == there["content"]
  lines = raw_stream(filler, "/infill", {"input_prefix": "def f(", "input_suffix": "\n", "n_predict": 4})
  pieces = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
  assert "".join(piece["content"] for piece in pieces) == there["content"]
  assert [piece["stop"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]
  warm = filler.post("/infill", {"input_prefix": "def f(", "input_suffix": "\n", "n_predict": 0})
  assert warm[0] == 200 and warm[1]["content"] == ""
  assert "insert" in filler.post("/api/show", {"model": "filler"})[1]["capabilities"]
  long = {"input_prefix": "def g(): pass\n" * 20_000, "input_suffix": "x = 1\n" * 20_000, "n_predict": 4}
  status, cut = filler.post("/infill", long)
  assert status == 200 and cut["truncated"] and not there["truncated"]
  room = cut["generation_settings"]["n_ctx"]
  assert room - 8 <= cut["tokens_evaluated"] + 4 <= room
  assert assert_error(*filler.post("/v1/completions", {"prompt": long["input_prefix"], "suffix": "x"}), 400)
  assert call(filler, "GET", "/infill")[0] == 405
  gap = {"input_prefix": "def f(", "input_suffix": "\n", "n_predict": 4}
  assert assert_error(*filler.post("/infill", gap | {"grammar": "root ::= ("}), 400)["param"] == "grammar"
  assert assert_error(*filler.post("/infill", gap | {"best_of": 3}), 400)["param"] == "best_of"
