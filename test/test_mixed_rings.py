"""Rings of several kinds of engines: SmolLM2 with float32 weights everywhere, and with what each engine prefers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from exo.errors import ExoError
from exo.inference.engines import probe_engine
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from test.support.models import convert_to_f16
from test.support.nodes import NodeProcess, free_port, wait_until
from test.support.stages import Stages

RINGS = [("onnx", "mlx"), ("mlx", "onnx"), ("mlx", "tinygrad"), ("onnx", "mlx", "tinygrad")]
PROMPT = "<|im_start|>user\nName three colours of the sea.<|im_end|>\n<|im_start|>assistant\n"


def need(*engines: str) -> None:
  for engine in engines:
    try:
      probe = probe_engine(engine)
    except ExoError as error:
      pytest.skip(str(error))
    if not probe.available:
      pytest.skip(probe.missing)


@pytest.fixture(scope="module")
def floats(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
  """SmolLM2 as float16 safetensors, which every engine turns to the same float32."""
  opened = open_checkpoint(convert_to_f16(smollm2, tmp_path_factory.mktemp("mixed") / "f16"))
  yield opened
  opened.close()


@pytest.fixture(scope="module")
def alone(floats: Checkpoint) -> tuple[list[int], np.ndarray]:
  """The onnx engine's greedy continuation and its logits for the prompt, all weights float32."""
  prompt = floats.tokenizer().encode(PROMPT)
  stages = Stages("onnx", floats, quantize="none")
  logits = stages.step([(2, 0, prompt)])
  return stages.greedy(prompt, 32), logits


@pytest.mark.parametrize("engines", RINGS, ids="+".join)
def test_the_same_weights_give_the_same_text(
    engines: tuple[str, ...], floats: Checkpoint, alone: tuple[list[int], np.ndarray]
) -> None:
  need(*engines)
  prompt = floats.tokenizer().encode(PROMPT)
  cuts = {2: (14, ), 3: (10, 20)}[len(engines)]
  stages = Stages(engines, floats, cuts, quantize="none")
  logits = stages.step([(2, 0, prompt)])
  difference = float(np.linalg.norm(logits - alone[1]) / np.linalg.norm(alone[1]))
  print(f"{'+'.join(engines)}: logits differ by {difference:.1e} of their norm")
  assert difference < 1e-4
  assert stages.greedy(prompt, 32) == alone[0]
  stages.close()


@pytest.mark.parametrize("engines", RINGS, ids="+".join)
def test_each_engines_own_weights_differ_by_no_more_than_int8_does(
    engines: tuple[str, ...], smollm2: Checkpoint, alone: tuple[list[int], np.ndarray]
) -> None:
  """The Q4_1 file as each engine prefers it: onnx computes in int8, the others in floats."""
  need(*engines)
  prompt = smollm2.tokenizer().encode(PROMPT)
  stages = Stages(engines, smollm2, {2: (14, ), 3: (10, 20)}[len(engines)])
  logits = stages.step([(1, 0, prompt)])
  difference = float(np.linalg.norm(logits - alone[1]) / np.linalg.norm(alone[1]))
  print(f"{'+'.join(engines)}: logits differ by {difference:.1e} of their norm")
  assert difference < 0.05
  assert (logits.argmax(-1) == alone[1].argmax(-1)).mean() >= 0.9
  stages.close()


def test_a_ring_of_onnx_and_mlx_processes_answers(model_home: Path) -> None:
  need("onnx", "mlx")
  port = str(free_port(2))
  flags = ("--listen-port", port, "--broadcast-port", port, "--max-memory", "2000")
  nodes = [NodeProcess(model_home, *flags, "--inference-engine", e, node_id=f"mixed-{e}") for e in ("onnx", "mlx")]
  try:
    for node in nodes:
      node.wait_ready()
    wait_until(lambda: all(len(node.peers()) == 2 for node in nodes), 15, "a ring of two")
    answers = [node.chat("What is 2 + 2?", max_tokens=24) for node in nodes]
    assert [status for status, _ in answers] == [200, 200], answers
    texts = [body["choices"][0]["message"]["content"] for _, body in answers]
    assert texts[0] == texts[1] and "4" in texts[0]
    topology = nodes[0].get("/v1/topology")[1]
    assert len(topology["plans"][0]["stages"]) == 2
  finally:
    for node in nodes:
      node.stop()
