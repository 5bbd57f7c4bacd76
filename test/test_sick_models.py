"""Line 3, requirement 21: models that contradict themselves, memory that ends, and how a worker finds out whether it still
computes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from exo.errors import EngineError, ModelFilesError, UnsupportedModelError
from exo.inference.engine import Batch, InferenceEngine, LoadOptions, StageModel
from exo.inference.engines import load_engine, probe_engine
from exo.inference.weights.checkpoint import EMBEDDING, Checkpoint, open_checkpoint
from exo.inference.weights.contradictions import check_consistent, check_tokenizer
from exo.worker.device_thread import DeviceThread
from exo.worker.health import WorkerHealth
from exo.worker.proof import ProofCheckpoint, prove
from test.conftest import DATA
from test.support.nodes import ROOT, NodeProcess, ring
from test.support.stages import Stages

ENGINES = ["dummy", "llama_cpp", "mlx", "mlx:8", "onnx", "onnx:4", "onnx:none", "tinygrad", "tinygrad:8", "tinygrad:4"]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
  probe = probe_engine(request.param.partition(":")[0])
  if not probe.available:
    pytest.skip(probe.missing)
  return str(request.param)


# a worker proves itself


def resident_mb() -> float:
  gc.collect()
  return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_line_3_an_engine_that_computes_is_proved_and_nothing_of_it_stays(engine: str) -> None:
  name, _, quantize = engine.partition(":")
  made = load_engine(name)
  prove(made, LoadOptions(0, 1, quantize=quantize or None))
  if not Path("/proc/self/statm").exists():
    pytest.skip("this system does not tell what a process holds")
  before = resident_mb()
  for _ in range(20):
    prove(made, LoadOptions(0, 1, quantize=quantize or None))
  assert resident_mb() - before < 8


@pytest.mark.parametrize("name", ["mlx", "onnx", "tinygrad"])
def test_line_3_the_proofs_own_numbers_are_right(name: str) -> None:
  """Three engines and numpy reckon the same."""
  if not (probe := probe_engine(name)).available:
    pytest.skip(probe.missing)
  checkpoint, tokens = ProofCheckpoint(), [3, 90, 41, 127, 0, 66, 12]
  stages = Stages(name, checkpoint, quantize="none", max_context=64)
  np.testing.assert_allclose(stages.step([(1, 0, tokens)]), checkpoint.logits(tokens), atol=1e-4)
  stages.close()


def _one_word(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
  logits[-1, 77] = np.nan
  return logits


# what an engine that is broken makes of its logits, and what the proof says
BROKEN: dict[str, tuple[Callable[[npt.NDArray[Any]], npt.NDArray[Any]], str]] = {
    "one is NaN": (_one_word, "numbers that are none"),
    "infinite": (lambda logits: logits * np.inf, "numbers that are none"),
    "zeros": (lambda logits: logits * 0, "wrong numbers: 100% off"),
    "of other tokens": (lambda logits: logits[:, ::-1], "wrong numbers"),
    "too small": (lambda logits: logits * 0.9, "wrong numbers: 10% off"),
    "too few": (lambda logits: logits[:, :-1], "shape"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_line_3_an_engine_that_computes_wrongly_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
  spoil, said = BROKEN[kind]
  closed: list[StageModel] = []

  def load(*args: Any) -> StageModel:
    model = onnx.load(*args)
    step, close = model.step, model.close
    monkeypatch.setattr(model, "step", lambda batch: spoil(np.array(step(batch))))
    monkeypatch.setattr(model, "close", lambda: closed.append(model) or close())
    return model

  onnx: InferenceEngine = load_engine("onnx")
  with pytest.raises(EngineError, match=said):
    prove(replace(onnx, load=load), LoadOptions(0, 1))
  assert len(closed) == 1


def test_line_3_an_engine_that_raises_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
  dummy = load_engine("dummy")

  def load(*args: Any) -> StageModel:
    model = dummy.load(*args)

    def step(batch: Batch) -> Any:
      raise OSError("no device")

    monkeypatch.setattr(model, "step", step)
    return model

  with pytest.raises(OSError, match="no device"):
    prove(replace(dummy, load=load), LoadOptions(0, 1))


@pytest.mark.parametrize("goes_on", [True, False])
def test_line_3_a_proof_that_waits_for_a_load_is_no_fault_while_that_goes_on(
    goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr("exo.worker.health._PROOF_S", 0.2)

  async def scenario() -> None:
    thread, loaded = DeviceThread(), [0]

    def load() -> None:
      for _ in range(20):
        time.sleep(0.05)
        loaded[0] += goes_on

    async def prove() -> None:
      await thread.run(lambda: None)

    health = WorkerHealth("one", prove, prove, lambda: loaded[0])
    load_ends = asyncio.create_task(thread.run(load))
    health.doubt()
    seen = []
    while health.doubted:
      seen.append(health.broken)
      await asyncio.sleep(0.02)
    assert any(seen) is not goes_on and not health.broken
    await load_ends
    await health.close()
    await asyncio.to_thread(thread.close)

  asyncio.run(asyncio.wait_for(scenario(), 30))


# files that contradict each other

Tensors = dict[str, npt.NDArray[Any]]
ONE = "model.layers.1."


def _longer(a: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
  return np.concatenate([a, np.zeros((rows, *a.shape[1:]), a.dtype)])


# changes of config.json (None takes a key out), and what the error says
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a word more": ({"vocab_size": 321}, "vocab_size is 321.*320 rows"),
    "a word less": ({"vocab_size": 319}, "vocab_size is 319.*320 rows"),
    "many words more": ({"vocab_size": 4000000}, "vocab_size is 4000000"),
    "wider": ({"hidden_size": 128}, "hidden_size is 128.*64 columns"),
    "narrower by one": ({"hidden_size": 63}, "hidden_size is 63"),
    "no width": ({"hidden_size": 0}, "hidden_size"),
    "a negative width": ({"hidden_size": -64}, "hidden_size"),
    "a layer more": ({"num_hidden_layers": 7}, "no tensors of layer 6"),
    "a layer less": ({"num_hidden_layers": 5}, "num_hidden_layers is 5.*layer 5"),
    "more heads": ({"num_attention_heads": 8}, "o_proj|q_proj"),
    "three KV heads": ({"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
    "as many KV heads": ({"num_key_value_heads": 4}, "k_proj"),
    "no KV head": ({"num_key_value_heads": 0}, "num_key_value_heads"),
    "wider heads": ({"head_dim": 32}, "q_proj"),
    "odd heads": ({"head_dim": 15}, "must be even"),
    "a wider MLP": ({"intermediate_size": 256}, "mlp.gate_proj"),
    "no MLP": ({"intermediate_size": None}, "mlp.gate_proj"),
    "theta zero": ({"rope_theta": 0, "rope_parameters": None}, "rope_theta is 0"),
    "theta negative": ({"rope_theta": -1e4, "rope_parameters": None}, "rope_theta is -10000"),
    "theta NaN": ({"rope_theta": float("nan"), "rope_parameters": None}, "rope_theta is nan"),
    "theta infinite": ({"rope_parameters": {"rope_theta": float("inf"), "rope_type": "default"}}, "rope_theta is inf"),
    "factors of another length": ({"rope_parameters": {
        "rope_theta": 1e4, "rope_type": "longrope", "short_factor": [1.0] * 5, "long_factor": [1.0] * 8,
        "original_max_position_embeddings": 256}}, "5 factors for 8 pairs"),
    "a factor of zero": ({"rope_parameters": {
        "rope_theta": 1e4, "rope_type": "longrope", "short_factor": [1.0] * 7 + [0.0], "long_factor": [1.0] * 8,
        "original_max_position_embeddings": 256}}, "factor of the rotary embedding"),
    "a scaling of NaN": ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": float("nan")}},
                         "factor is nan"),
    "a scaling without a name": ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "twisted"}}, "twisted"),
    "a scaling in words": ({"rope_parameters": {"rope_theta": "much"}}, "much"),
    "eps infinite": ({"rms_norm_eps": float("inf")}, "plausible|rms_norm_eps"),
    "eps NaN": ({"rms_norm_eps": float("nan")}, "plausible|rms_norm_eps"),
    "eps negative": ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
    "no context": ({"max_position_embeddings": 0}, "max_position_embeddings"),
    "a context without end": ({"max_position_embeddings": 10**15}, "max_position_embeddings"),
    "another family": ({"model_type": "qwen3"}, "q_norm"),
    "a family with more norms": ({"model_type": "gemma2"}, "feedforward_layernorm"),
    "an unknown family": ({"model_type": "walrus"}, "walrus"),
    "no family": ({"model_type": None}, "type"),
    "a head of its own": ({"tie_word_embeddings": False}, "tie_word_embeddings"),
    "sizes in words": ({"num_attention_heads": "four"}, "num_attention_heads"),
    "a window of zero": ({"sliding_window": 0}, "sliding_window"),
    "a scale of nothing": ({"query_pre_attn_scalar": 0}, "config.json"),
}  # yapf: disable
# changes of the tensors
TENSORS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "an embedding of fewer words": (lambda t: t.update({EMBEDDING: t[EMBEDDING][:-9]}), "vocab_size is 320.*311 rows"),
    "no embedding": (lambda t: t.pop(EMBEDDING), "embed_tokens"),
    "an embedding of whole numbers": (lambda t: t.update({EMBEDDING: t[EMBEDDING].astype(np.int64)}), "I64"),
    "no last norm": (lambda t: t.pop("model.norm.weight"), "no model.norm.weight"),
    "a longer norm": (
        lambda t: t.update({f"{ONE}input_layernorm.weight": np.ones(65, np.float32)}), "input_layernorm.*shape 65"
    ),
    "a matrix on its side": (
        lambda t: t.update({f"{ONE}mlp.up_proj.weight": np.ascontiguousarray(t[f"{ONE}mlp.up_proj.weight"].T)}),
        "up_proj.*64 × 128"
    ),
    "a matrix of more rows": (
        lambda t: t.update({f"{ONE}self_attn.k_proj.weight": _longer(t[f"{ONE}self_attn.k_proj.weight"], 1)}),
        "k_proj.*33 × 64"
    ),
    "a matrix as a list": (
        lambda t: t.update({f"{ONE}self_attn.o_proj.weight": t[f"{ONE}self_attn.o_proj.weight"].reshape(-1)}), "o_proj"
    ),
    "no matrix": (lambda t: t.pop(f"{ONE}self_attn.v_proj.weight"), "v_proj"),
    "a bias of another length": (
        lambda t: t.update({f"{ONE}self_attn.q_proj.bias": np.zeros(63, np.float32)}), "q_proj.bias"
    ),
    "biases that are not spoken of": (
        lambda t: t.update({
            f"model.layers.{i}.self_attn.{part}_proj.bias": np.ones(64 if part == "q" else 32, np.float32)
            for i in range(6)
            for part in "qkv"
        }), "attention_bias"
    ),
    "one bias of three": (lambda t: t.update({f"{ONE}self_attn.q_proj.bias": np.zeros(64, np.float32)}), "bias"),
    "a layer too many": (
        lambda t: t.update({"model.layers.9.input_layernorm.weight": np.ones(64, np.float32)}), "layer 9"
    ),
    "a head of fewer words": (lambda t: t.update({"lm_head.weight": t[EMBEDDING][:7]}), "lm_head.weight has 7 rows"),
    "a matrix of bits": (
        lambda t: t.update({
            f"{ONE}mlp.up_proj.weight": np.zeros((128, 8), np.uint32), f"{ONE}mlp.up_proj.scales": np.ones(
                (128, 5), np.float16
            ), f"{ONE}mlp.up_proj.biases": np.ones((128, 5), np.float16)
        }), "up_proj"
    ),
}
# files beside
FILES: dict[str, tuple[str, bytes, str]] = {
    "an index of a file that is not here": (
        "model.safetensors.index.json", b'{"weight_map": {"model.norm.extra": "model-00002.safetensors"}}', "lacks"
    ),
    "an index that is a list": ("model.safetensors.index.json", b'{"weight_map": ["model.safetensors"]}', "weight_map"),
    "a configuration that is a list": ("config.json", b"[1, 2]", "config.json"),
    "a configuration that is cut off": ("config.json", b'{"model_type": "llama", "hidden', "config.json"),
    "a tokenizer that is none": ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE"}}', "tokenizer.json"),
    "a tokenizer that is cut off": ("tokenizer.json", b'{"version": "1.0", "mo', "tokenizer.json"),
    "a template that does not compile": ("chat_template.jinja", b"{% for m in messages %}{{ m", "template"),
}
# what is odd but harms nobody
BORNE: dict[str, tuple[str, bytes]] = {
    "an end beyond the words": ("generation_config.json", b'{"eos_token_id": [99999, -3, "x", true]}'),
    "a template that is a number": ("tokenizer_config.json", b'{"chat_template": 7}'),
    "templates that are numbers": ("tokenizer_config.json", b'{"chat_template": [1, {"name": 3}]}'),
}
REFUSED = [*CONFIGS, *TENSORS, *FILES]


def write_model(folder: Path, kind: str) -> None:
  """The golden Llama with one change; `kind` may name none."""
  source = DATA / "goldens" / "llama"
  folder.mkdir(parents=True)
  for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(source / name, folder / name)
  config = json.loads((source / "config.json").read_text())
  config |= CONFIGS.get(kind, ({}, ""))[0]
  (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
  tensors = load_file(source / "model.safetensors")
  if kind in TENSORS:
    TENSORS[kind][0](tensors)
  save_file(tensors, folder / "model.safetensors")
  if kind in FILES or kind in BORNE:
    name, content = (FILES[kind] if kind in FILES else BORNE[kind])[:2]
    (folder / name).write_bytes(content)


def name_of(kind: str) -> str:
  return kind.replace(" ", "-").lower()


@pytest.fixture(
    scope="module", params=["onnx", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mlx", "tinygrad"))]
)
def sick_node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  if not (probe := probe_engine(request.param)).available:
    pytest.skip(probe.missing)
  home = tmp_path_factory.mktemp("sick")
  for kind in ("good", *REFUSED, *BORNE):
    write_model(home / "models" / name_of(kind), kind)
  with ring(
      home, 1, "--inference-engine", request.param, "--model-dir", str(home / "models"), "--default-model", "good"
  ) as (node, ):
    ask(node, "good", 300)  # an engine may have to compile
    yield node


def ask(node: NodeProcess, model: str, timeout_s: float = 20) -> tuple[int, Any]:
  return node.post(
      "/v1/chat/completions",
      {"model": model, "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 4, "temperature": 0},
      timeout_s
  )


@pytest.mark.parametrize("kind", REFUSED)
def test_line_3_files_that_contradict_each_other_are_refused_alone(sick_node: NodeProcess, kind: str) -> None:
  """In words, at once; the model beside it answers as ever."""
  said = (CONFIGS.get(kind) or TENSORS.get(kind) or FILES[kind])[-1]
  for _ in range(2):  # it does not get better, nor worse
    status, answer = ask(sick_node, name_of(kind))
    assert status in (400, 503), answer
    assert re.search(said, answer["error"]["message"]), answer
    assert answer["error"]["code"] in ("model_files_error", "unsupported_model")
  status, answer = ask(sick_node, "good")
  assert status == 200 and answer["usage"]["completion_tokens"] > 0, answer
  status, health = sick_node.get("/health")
  assert (status, health["status"]) == (200, "ok"), health


@pytest.mark.parametrize("kind", BORNE)
def test_line_3_what_is_odd_but_harmless_is_borne(sick_node: NodeProcess, kind: str) -> None:
  status, answer = ask(sick_node, name_of(kind))
  assert status == 200 and answer["usage"]["completion_tokens"] > 0, answer


# changes of a GGUF file's metadata: key, the number in place of its own, what the error says
GGUF: list[tuple[str, float, str]] = [
    ("embedding_length", 575, "turns 64 of head_dim 63"),
    ("embedding_length", 0, "positive"),
    ("block_count", 31, "no tensors of layer 30"),
    ("block_count", 29, "tensors of layer 29"),
    ("block_count", 0, "positive"),
    ("feed_forward_length", 1535, "mlp.gate_proj"),
    ("attention.head_count", 8, "num_key_value_heads 3"),
    ("attention.head_count", 0, "positive"),
    ("attention.head_count_kv", 2, "multiple"),
    ("attention.head_count_kv", 9, "k_proj"),
    ("attention.head_count_kv", 0, "positive"),
    ("attention.layer_norm_rms_epsilon", float("nan"), "plausible"),
    ("attention.layer_norm_rms_epsilon", -1.0, "rms_norm_eps"),
    ("rope.freq_base", 0.0, "rope_theta is 0"),
    ("rope.freq_base", float("inf"), "rope_theta is inf"),
    ("rope.dimension_count", 63, "even"),
    ("rope.dimension_count", 128, "turns 128 of head_dim 64"),
    ("context_length", 0, "positive"),
    ("context_length", 2**32 - 1, "max_position_embeddings"),
]


def test_line_3_a_gguf_files_metadata_must_fit_its_tensors(smollm2: Checkpoint, tmp_path: Path) -> None:
  copy = tmp_path / "copy.gguf"
  shutil.copy(smollm2.path, copy)
  check_consistent(open_checkpoint(copy))
  header = copy.read_bytes()[:2**22]
  for key, value, said in GGUF:
    name = f"llama.{key}".encode()
    at = header.index(len(name).to_bytes(8, "little") + name) + 8 + len(name)
    kind, = struct.unpack_from("<I", header, at)
    with copy.open("r+b") as file:
      file.seek(at + 4)
      file.write(struct.pack({4: "<I", 6: "<f"}[kind], value))
    with pytest.raises(ModelFilesError, match=said):
      check_consistent(open_checkpoint(copy))
    with copy.open("r+b") as file:
      file.seek(at + 4)
      file.write(header[at + 4:at + 8])
  check_consistent(open_checkpoint(copy))


@pytest.mark.parametrize("folder", ["goldens", "families"])
def test_line_3_sound_models_are_not_refused(folder: str) -> None:
  """Of every family that is here, the hub's form and transformers' own."""
  shared = ROOT.parent / "shared" / folder
  models = sorted({*(DATA / "goldens").iterdir(), *(shared.iterdir() if shared.is_dir() else ())})
  checked = []
  for model in models:
    if model.name == "gemma3_hub":  # its embedding alone: a configuration to read
      continue
    try:
      checkpoint = open_checkpoint(model)
      checkpoint.config  # noqa: B018 - some families' cannot be read at all yet
    except (ModelFilesError, UnsupportedModelError):
      continue
    check_consistent(checkpoint)
    check_tokenizer(checkpoint, checkpoint.tokenizer())
    checked.append(model.name)
  assert len(checked) >= 2
