"""What is particular to the tinygrad engine: its choice of a device, its pages, its kernels made once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from exo.config import config_from
from exo.errors import ConfigError, EngineError, EngineUnavailableError
from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf
from exo.inference.engines import load_engine, offered_engines, probe_engine
from exo.inference.shard import Shard
from exo.inference.tinygrad import probe
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from test.support.nodes import ROOT, NodeProcess, free_port, wait_until
from test.support.stages import Stages

needs_clang = pytest.mark.skipif(shutil.which("clang") is None, reason=probe.CLANG_ADVICE)


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def make_file(path: Path, text: str = "") -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


# which device


@pytest.mark.skipif(sys.platform != "linux", reason="these are Linux's device files")
def test_gpus_are_known_by_their_device_files(tmp_path: Path) -> None:
  assert probe.find_gpu(tmp_path) is None and probe.count_gpus(tmp_path) == 0
  make_file(tmp_path / "sys/class/kfd/kfd/topology/nodes/0/gpu_id", "0\n")
  make_file(tmp_path / "dev/kfd")
  assert probe.find_gpu(tmp_path) is None  # a processor is a node too
  make_file(tmp_path / "sys/class/kfd/kfd/topology/nodes/1/gpu_id", "12345\n")
  assert probe.find_gpu(tmp_path) == ("AMD GPU", ("AMD", ))
  make_file(tmp_path / "sys/class/kfd/kfd/topology/nodes/2/gpu_id", "12346\n")
  assert probe.count_gpus(tmp_path) == 2
  make_file(tmp_path / "dev/nvidiactl")
  assert probe.find_gpu(tmp_path) == ("AMD GPU", ("AMD", ))  # a driver without a card
  make_file(tmp_path / "dev/nvidia0")
  assert probe.find_gpu(tmp_path) == ("NVIDIA GPU", ("CUDA", "NV"))
  make_file(tmp_path / "dev/nvidia1")
  assert probe.count_gpus(tmp_path) == 2
  intel = tmp_path / "intel"
  make_file(intel / "sys/class/drm/renderD128/device/vendor", "0x8086\n")
  assert probe.find_gpu(intel) is None
  make_file(intel / "etc/OpenCL/vendors/intel.icd")
  assert probe.find_gpu(intel) == ("Intel GPU", ("CL", )) and probe.count_gpus(intel) == 1


def test_a_gpu_makes_it_the_automatic_choice(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(probe, "find_gpu", lambda *root: ("NVIDIA GPU", ("CUDA", "NV")))
  monkeypatch.setattr(probe, "count_gpus", lambda *root: 1)
  choice = offered_engines("auto")[0]
  if choice.name != "mlx":
    assert (choice.name, choice.device) == ("tinygrad", "NVIDIA GPU")
  assert probe.devices() == ("CUDA", "NV", "CPU")


def test_without_clang_the_message_names_it_and_auto_takes_another(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(probe, "find_gpu", lambda *root: None)
  monkeypatch.setenv("PATH", "/nowhere")
  with pytest.raises(EngineUnavailableError, match="install the package clang"):
    offered_engines("tinygrad")[0]
  assert offered_engines("auto")[0].name != "tinygrad"


@needs_clang
def test_on_a_cpu_it_is_there_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(probe, "find_gpu", lambda *root: None)
  assert offered_engines("tinygrad")[0].device == "CPU"
  assert offered_engines("auto")[0].name != "tinygrad"


# debug output


def test_tinygrad_debug_is_a_number() -> None:
  assert config_from({}, {"TINYGRAD_DEBUG": "2", "DEBUG": "9"}).tinygrad_debug == 2
  with pytest.raises(ConfigError, match="TINYGRAD_DEBUG"):
    config_from({}, {"TINYGRAD_DEBUG": "loud"})


@needs_clang
def test_tinygrad_debug_reaches_tinygrad_and_exos_debug_does_not(goldens: Path) -> None:
  code = f"""
import numpy as np
from pathlib import Path
from exo.config import config_from
from exo.inference.engine import *
from exo.inference.engines import load_engine
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import open_checkpoint
options = LoadOptions(2**30, 1, max_context=64, library_debug=config_from({{}}).tinygrad_debug)
model = load_engine("tinygrad").load(Shard("m", 0, 0, 6), open_checkpoint(Path({str(goldens / "llama")!r})), options, lambda _: None)
model.step(Batch((BatchEntry(1, 0, 2, LogitsOf.NONE),), np.array([4, 5], np.int32)))
"""

  def output(**variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("DEBUG", "TINYGRAD_DEBUG", "DEV")} | {"DEV": "CPU"}
    done = subprocess.run([sys.executable, "-c", code],
                          capture_output=True,
                          text=True,
                          cwd=ROOT,
                          env=environment | variables,
                          check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr

  assert output(DEBUG="9") == ""
  assert "opened device CPU" in (one := output(TINYGRAD_DEBUG="1")) and "scores_" not in one
  assert "*** CPU scores_4_2_16_None" in output(TINYGRAD_DEBUG="2", DEBUG="0")


# steps


@pytest.fixture(scope="module")
def llama(goldens: Path) -> Checkpoint:
  if not probe_engine("tinygrad").available:
    pytest.skip(probe.CLANG_ADVICE)
  return open_checkpoint(goldens / "llama")


def random_tokens(checkpoint: Checkpoint, count: int) -> list[int]:
  return [int(t) for t in np.random.default_rng(7).integers(3, checkpoint.config.vocab_size, count)]


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_more_tokens_than_rows_and_pages_of_very_unequal_sequences(
    llama: Checkpoint, goldens: Path, architecture: str
) -> None:
  """Steps longer than the engine's rows, contexts many times the sliding window, against another engine."""
  opened = open_checkpoint(goldens / architecture)
  tokens = random_tokens(opened, 300)
  stages, reference = Stages("tinygrad", opened, (3, )), Stages("onnx:none", opened)
  expected = reference.step([(1, 0, tokens)])
  whole = stages.step([(1, 0, tokens)])
  assert relative_error(whole, expected) < 1e-4
  parts = [stages.step([(2, a, tokens[a:b])]) for a, b in ((0, 129), (129, 131), (131, 300))]
  np.testing.assert_array_equal(np.concatenate(parts), whole)
  stages.step([(3, 0, tokens[:5])])
  alone = [stages.step([(s, n, tokens[:1])]) for s, n in ((1, 300), (3, 5), (2, 300))]
  for s, n in ((1, 300), (3, 5), (2, 300)):
    stages.each("truncate", s, n)
  np.testing.assert_array_equal(
      stages.step([(s, n, tokens[:1]) for s, n in ((1, 300), (3, 5), (2, 300))]), np.concatenate(alone)
  )


def test_nothing_is_compiled_after_loading(llama: Checkpoint) -> None:
  from exo.inference.tinygrad.device import compile_kernel
  stages, tokens = Stages("tinygrad", llama), random_tokens(llama, 200)
  before = compile_kernel.cache_info().misses
  stages.step([(1, 0, tokens)])
  stages.step([(2, 0, tokens[:3]), (1, 200, tokens[:1])], LogitsOf.LAST)
  for k in range(5):
    stages.step([(1, 201 + k, tokens[:1]), (2, 3 + k, tokens[:1])])
  stages.each("copy", 1, 3, 100)
  assert compile_kernel.cache_info().misses == before


def test_progress_grows_from_weights_to_kernels(llama: Checkpoint) -> None:
  seen: list[float] = []
  load_engine("tinygrad").load(Shard("m", 0, 5, 6), llama, LoadOptions(2**30, 1, max_context=64), seen.append)
  assert seen == sorted(seen) and len(seen) >= 12 and seen[-1] == 1.0


def test_a_sequence_of_nan_leaves_nothing_behind(llama: Checkpoint) -> None:
  """Pages are used again, and 0 times NaN is NaN."""
  model = load_engine("tinygrad"
                      ).load(Shard("m", 2, 3, 6), llama, LoadOptions(2**30, 1, max_context=64), lambda _: None)
  good = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
  ids = np.zeros(5, np.int32)

  def step(sequence: int, hidden: np.ndarray) -> np.ndarray:
    return model.step(Batch((BatchEntry(sequence, 0, 5, LogitsOf.NONE), ), ids, hidden))

  expected = step(1, good)
  assert np.isnan(step(2, np.full_like(good, np.nan))).all()
  model.drop(1)
  model.drop(2)
  np.testing.assert_array_equal(step(3, good), expected)
  np.testing.assert_array_equal(step(4, good), expected)


def test_a_full_cache_is_said_to_be_full(llama: Checkpoint) -> None:
  options = LoadOptions(2**30, 1, kv_memory_bytes=1, max_sequences=2, max_context=512)
  model = load_engine("tinygrad").load(Shard("m", 0, 5, 6), llama, options, lambda _: None)
  tokens = np.array(random_tokens(llama, 100), np.int32)
  with pytest.raises(EngineError, match="tokens of the KV cache are taken"):
    model.step(Batch((BatchEntry(1, 0, 100, LogitsOf.NONE), ), tokens))
  model.drop(1)
  for sequence in (2, 3):
    model.step(Batch((BatchEntry(sequence, 0, 5, LogitsOf.NONE), ), tokens[:5]))
  with pytest.raises(EngineError, match="places of the KV cache are taken"):
    model.step(Batch((BatchEntry(4, 0, 5, LogitsOf.NONE), ), tokens[:5]))


def test_experts_in_eight_bits(llama: Checkpoint, goldens: Path) -> None:
  """Rounding turns some near ties of the router's random weights; the tokens it does not turn stay near."""
  folder = goldens / "qwen3_moe"
  if not folder.exists():
    pytest.skip("the shared golden checkpoints are not here")
  prompts, expected = np.load(folder / "tokens.npy"), np.load(folder / "logits.npy")
  stages = Stages("tinygrad:8", open_checkpoint(folder))
  for row, prompt in enumerate(prompts):
    logits = stages.step([(row, 0, prompt.tolist())])
    errors = np.linalg.norm(logits - expected[row], axis=1) / np.linalg.norm(expected[row], axis=1)
    assert np.median(errors) < 5e-2


@needs_clang
def test_a_ring_of_two_tinygrad_processes_answers(model_home: Path) -> None:
  port = str(free_port(2))
  flags = ("--listen-port", port, "--broadcast-port", port, "--max-memory", "3000", "--inference-engine", "tinygrad")
  nodes = [NodeProcess(model_home, *flags, node_id=f"tinygrad-{i}", env={"DEV": "CPU"}) for i in range(2)]
  try:
    for node in nodes:
      node.wait_ready()
    wait_until(lambda: all(len(node.peers()) == 2 for node in nodes), 15, "a ring of two")
    answers = [node.chat("What is 2 + 2?", max_tokens=16) for node in nodes]
    assert [status for status, _ in answers] == [200, 200], answers
    texts = [body["choices"][0]["message"]["content"] for _, body in answers]
    assert texts[0] == texts[1] and "4" in texts[0]
    assert len(nodes[0].get("/v1/topology")[1]["plans"][0]["stages"]) == 2
  finally:
    for node in nodes:
      node.stop()


@pytest.mark.slow
def test_the_same_kernels_on_a_device_that_is_no_cpu(goldens: Path) -> None:
  """OpenCL, whose loops tinygrad lays out and whose memory is apart, with weights of 16 bits; pocl is enough for it."""
  opened = subprocess.run([sys.executable, "-c", "from tinygrad import Device; Device['CL']"],
                          capture_output=True,
                          check=False)
  if opened.returncode:
    pytest.skip("no OpenCL device (Debian: pocl-opencl-icd)")
  code = f"""
import numpy as np
from pathlib import Path
from exo.inference.weights.checkpoint import open_checkpoint
from test.support.stages import Stages
for name in ("llama", "gemma3_text", "qwen3_moe"):
  folder = Path({str(goldens)!r}) / name
  stages = Stages("tinygrad", open_checkpoint(folder), (2, ))
  prompt, logits = np.load(folder / "tokens.npy")[0].tolist(), np.load(folder / "logits.npy")[0]
  error = np.linalg.norm(stages.step([(1, 0, prompt)]) - logits) / np.linalg.norm(logits)
  stages.each("drop", 1)
  assert error < 1e-2, (name, error)
  assert stages.greedy(prompt, 8) == np.load(folder / "greedy.npy")[0][:8].tolist(), name
"""
  done = subprocess.run([sys.executable, "-c", code],
                        capture_output=True,
                        text=True,
                        cwd=ROOT,
                        env=os.environ | {"DEV": "CL"},
                        check=False)
  assert done.returncode == 0, done.stderr
