"""SmolLM2's likelihoods and prompts against llama.cpp's on the same file, over HTTP, on one node and on two."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from exo.inference.kv_type import KvType
from exo.inference.llama_cpp.binding import load_library
from exo.inference.llama_cpp.library_choice import chosen_library
from exo.inference.llama_cpp.llama_model import FileOnDisk, LastWords, LlamaContext, LlamaModel, Row
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from test.support.models import fetch_gemma
from test.support.nodes import NodeProcess, ring
from test.support.stages import Stages

REFERENCE = json.loads((Path(__file__).parent / "data" / "smollm2_135m_q4_1_llama_cpp.json").read_text())


def whole_nll(path: Path, kv: KvType, token_ids: list[int]) -> float:
  """Of llama.cpp by itself: the whole file, with tokens as they are."""
  library = load_library(chosen_library().file.path)
  model = LlamaModel(library, LastWords(library), FileOnDisk(path, {}, mapped=False), lambda _: None)
  context = LlamaContext(model, 1024, 1, len(token_ids), 1, kv)
  rows = [Row(0, i) for i in range(len(token_ids))]
  logits = context.compute(rows, np.array(token_ids, np.int32), 1).astype(np.float64)
  context.close()
  model.close()
  logits -= logits.max(axis=1, keepdims=True)
  logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
  return float(-logits[np.arange(len(token_ids) - 1), token_ids[1:]].mean())


@pytest.mark.parametrize("name", ["smollm2_135m_q4_1", pytest.param("gemma3_270m_q4_k_m", marks=pytest.mark.slow)])
def test_line_5_likelihoods_are_those_of_llama_cpp(name: str, smollm2: Checkpoint, model_home: Path) -> None:
  """Of each reference text within 0.1 % of the library's with the same kinds of keys and values, whole and cut; with those that are the
  default, over all texts of a model, within 0.3 % of floats of 16 bits."""
  reference = json.loads((Path(__file__).parent / "data" / f"{name}_llama_cpp.json").read_text())
  path = smollm2.path if name.startswith("smollm2") else fetch_gemma(model_home)
  checkpoint = open_checkpoint(path)
  texts = [text["token_ids"] for text in reference["texts"]]
  means: dict[tuple[str | None, tuple[int, ...]], float] = {}
  for kind, cuts in itertools.product(("f16", None), ((), (5, ))):
    kv = KvType.choose(kind, checkpoint.head_dims)
    stages = Stages("llama_cpp", checkpoint, cuts, kv_type=kind, max_context=1024)
    found = [stages.mean_nll(token_ids) for token_ids in texts]
    stages.close()
    assert found == pytest.approx([whole_nll(path, kv, token_ids) for token_ids in texts], rel=0.001)
    means[kind, cuts] = sum(nll * (len(ids) - 1) for nll, ids in zip(found, texts, strict=True))
  assert means[None, ()] == means[None, (5, )] == pytest.approx(means["f16", ()], rel=0.003)
  checkpoint.close()


def mean_nll(node: NodeProcess, token_ids: list[int]) -> float:
  status, body = node.post(
      "/v1/completions", {"model": "smollm2-135m", "prompt": token_ids, "max_tokens": 0, "echo": True, "logprobs": 0}
  )
  assert status == 200, body
  logprobs = body["choices"][0]["logprobs"]["token_logprobs"]
  assert logprobs[0] is None and len(logprobs) == len(token_ids)
  return -sum(logprobs[1:]) / (len(token_ids) - 1)


@pytest.mark.parametrize("count", [1, 2])
def test_within_two_percent_of_llama_cpp(model_home: Path, count: int) -> None:
  with ring(model_home, count) as nodes:
    for text in REFERENCE["texts"]:
      assert mean_nll(nodes[0], text["token_ids"]) == pytest.approx(text["mean_nll"], rel=0.02)
    for chat in REFERENCE["chat"]:
      status, body = nodes[0].chat(chat["prompt"], max_tokens=1)
      assert status == 200 and body["usage"]["prompt_tokens"] == chat["usage"]["prompt_tokens"]
    assert len(nodes[0].get("/v1/topology")[1]["plans"][0]["stages"]) == count
