"""SmolLM2's likelihoods and prompts against llama.cpp's on the same file, over HTTP, on one node and on two."""

import json
from pathlib import Path

import pytest

from test.support.nodes import NodeProcess, ring

REFERENCE = json.loads((Path(__file__).parent / "data" / "smollm2_135m_q4_1_llama_cpp.json").read_text())


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
