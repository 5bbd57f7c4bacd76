"""Real models in every form of weights on every engine: likelihoods against float32's and llama.cpp's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exo.inference.engine_names import engine_names
from exo.inference.engines import probe_engine
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from test.conftest import DATA
from test.support.models import convert_to_f16, convert_to_mlx, fetch_gemma
from test.support.stages import Stages

CONTEXT = 1024
GEMMA_TEXTS = json.loads((DATA / "gemma3_270m_q4_k_m_llama_cpp.json").read_text())["texts"]
TEXT = GEMMA_TEXTS[2]["text"][:900]
ENGINES = [name for name in engine_names() if name != "dummy"]
# Gemma is compared with llama.cpp below by default
FORMS = ["q4_1", "f16", "mlx4", pytest.param("gemma", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def gemma(model_home: Path) -> Checkpoint:
  return open_checkpoint(fetch_gemma(model_home))


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest, smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
  folder = tmp_path_factory.mktemp("form")
  match request.param:
    case "f16":
      return open_checkpoint(convert_to_f16(smollm2, folder / "f16"))
    case "mlx4":
      return open_checkpoint(convert_to_mlx(smollm2, folder / "mlx4", 4, 64))
    case "gemma":
      return request.getfixturevalue("gemma")  # type: ignore[no-any-return]
    case _:
      return smollm2


@pytest.fixture(scope="module")
def float32_nll(form: Checkpoint) -> float:
  """The same file's, every weight dequantized to float32 and computed in it."""
  stages = Stages("onnx:none", Dequantized(form), max_context=CONTEXT)
  nll = stages.mean_nll(form.tokenizer().encode(TEXT, add_bos=True))
  stages.close()
  return nll


class Dequantized(Checkpoint):
  """A checkpoint whose tensors are all float32."""
  def __init__(self, inner: Checkpoint) -> None:
    self._inner, self.path = inner, inner.path

  hf_config = property(lambda self: self._inner.hf_config)  # type: ignore[assignment]

  def names(self):  # type: ignore[no-untyped-def]
    return self._inner.names()

  def tensor_bytes(self, name: str) -> int:
    return self.tensor(name).n_bytes

  def tensor(self, name: str):  # type: ignore[no-untyped-def]
    from exo.inference.weights.tensor import StoredTensor
    stored = self._inner.tensor(name)
    values = stored.to_float32()
    return StoredTensor(name, stored.shape, "F32", values.view("u1"))

  def tokenizer(self):  # type: ignore[no-untyped-def]
    return self._inner.tokenizer()

  def close(self) -> None:
    self._inner.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_within_two_percent_of_float32(engine: str, form: Checkpoint, float32_nll: float) -> None:
  probe = probe_engine(engine)
  if not probe.available:
    pytest.skip(probe.missing)
  if engine == "llama_cpp" and form.container != "gguf":
    pytest.skip("it reads GGUF files alone")
  stages = Stages(engine, form, max_context=CONTEXT)
  nll = stages.mean_nll(form.tokenizer().encode(TEXT, add_bos=True))
  stages.close()
  assert nll == pytest.approx(float32_nll, rel=0.02)


@pytest.mark.parametrize(
    "engine", [
        "onnx",
        *(pytest.param(engine, marks=pytest.mark.slow) for engine in ENGINES if engine not in ("onnx", "llama_cpp"))
    ]
)
def test_gemma_within_two_percent_of_llama_cpp(engine: str, gemma: Checkpoint) -> None:
  """The longest text reaches beyond the sliding window of 512 tokens."""
  probe = probe_engine(engine)
  if not probe.available:
    pytest.skip(probe.missing)
  tokenizer = gemma.tokenizer()
  stages = Stages(engine, gemma, max_context=CONTEXT)
  assert max(len(text["token_ids"]) for text in GEMMA_TEXTS) > 512
  for text in GEMMA_TEXTS:
    assert tokenizer.encode(text["text"], add_bos=True) == text["token_ids"]
    assert stages.mean_nll(text["token_ids"]) == pytest.approx(text["mean_nll"], rel=0.02)
  stages.close()
