"""A ring of two real processes: found by UDP, one answer whoever computes it, and a peer that dies."""

from pathlib import Path

import pytest
from openai import OpenAI

from test.support.nodes import NodeProcess, ring, wait_until

QUESTION = "Write one sentence about the sea."


def _answer(node: NodeProcess, **fields) -> str:
  status, body = node.chat(QUESTION, max_tokens=48, **fields)
  assert status == 200, body
  return body["choices"][0]["message"]["content"]


@pytest.mark.slow  # the contract of engines has splits, this whole processes
def test_any_split_gives_the_same_text(model_home: Path) -> None:
  texts = {}
  for count in (1, 2, 3):
    with ring(model_home, count) as nodes:
      greedy = _answer(nodes[-1])
      seeded = _answer(nodes[0], temperature=1.0, seed=7)
      stages = nodes[0].get("/v1/topology")[1]["plans"][0]["stages"]
      assert len(stages) == count
      texts[count] = greedy, seeded
  assert texts[1] == texts[2] == texts[3]
  assert texts[1][0] != texts[1][1]


def test_streamed_over_two_equals_the_single_node_and_survives_a_dead_peer(model_home: Path) -> None:
  with ring(model_home, 1) as (single, ):
    expected = _answer(single)
  with ring(model_home, 2) as (one, other):
    client = OpenAI(base_url=f"{one.url}/v1", api_key="none", max_retries=0, timeout=60)
    chunks = client.chat.completions.create(
        model="smollm2-135m", messages=[{"role": "user", "content": QUESTION}], max_tokens=48, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    other.kill()
    wait_until(lambda: one.peers() == {one.node_id}, 5, "the loss of the peer")
    assert _answer(one) == expected


def test_a_model_too_large_for_either_runs_on_both(model_home: Path) -> None:
  with ring(model_home, 2, "--max-memory", "250", "--inference-engine", "onnx", wait=False) as (one, other):
    both = {one.node_id, other.node_id}
    wait_until(lambda: one.peers() == both, 15, "a ring of two")
    assert "sea" in _answer(one)
    other.kill()
    wait_until(lambda: one.peers() == {one.node_id}, 5, "the loss of the peer")
    status, body = one.chat(QUESTION)
    assert status == 503 and "MB are missing" in body["error"]["message"]
    assert body["error"]["code"] == "model_too_large"
