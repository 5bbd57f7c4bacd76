"""Current families in the forms in which they are published, on every engine: right by their references, or refused before
anything is loaded. What an engine's table says, its constructor does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exo.errors import ModelFilesError, UnsupportedModelError
from exo.inference.engine_names import engine_names
from exo.inference.engines import probe_engine
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.inference.weights.contradictions import check_consistent
from test.support.families import TOLERANCE, Form, all_forms, error, few_forms, log_probabilities, of_tokens
from test.support.stages import Stages

ENGINES = [name for name in engine_names() if name != "dummy" and probe_engine(name).available]
# a configuration to read, with an embedding and nothing else
NOT_OPENED = {"gemma3_hub-hub"}
# what llama.cpp itself computes otherwise (`test_known_deviations.py`)
OFF = {"gpt_oss-gguf": 1.0, "gpt_oss_mxfp4-gguf": 1.0, "starcoder2-gguf": 2.0}

# those of the repository, and with -m slow all that are on this machine
FORMS = [
    pytest.param(form, marks=() if form in few_forms() else pytest.mark.slow, id=str(form)) for form in all_forms()
]


def opens(form: Form) -> bool:
  return str(form) not in NOT_OPENED


def opened(form: Form, folder: Path) -> Checkpoint:
  checkpoint = open_checkpoint(form.lay_out(folder))
  check_consistent(checkpoint)
  return checkpoint


@pytest.mark.parametrize("form", [param for param in FORMS if opens(param.values[0])])
def test_line_2_a_table_says_what_a_load_does_and_what_is_loaded_is_right(form: Form, tmp_path: Path) -> None:
  checkpoint, able = opened(form, tmp_path), []
  n = checkpoint.config.n_layers
  for engine in ENGINES:
    offer, held = probe_engine(engine), ":none" if engine == "onnx" else ""
    if (why := offer.cannot(checkpoint.facts)) is not None:
      with pytest.raises(UnsupportedModelError) as refusal:
        Stages(engine + held, checkpoint)
      assert str(refusal.value) == f"the {engine} engine{why.removeprefix(engine)}"
      continue
    able.append(engine)
    for cuts in ((), (n // 2, )):
      if cuts and not offer.repertoire.can_cut(checkpoint.facts):
        with pytest.raises(UnsupportedModelError, match="cannot cut"):
          Stages(engine + held, checkpoint, cuts)
        continue
      stages = Stages(engine + held, checkpoint, cuts, kv_type="f32")
      assert error(stages, form) <= OFF.get(str(form), TOLERANCE)
      stages.close()
  checkpoint.close()
  assert able or form.family.startswith("gpt_oss"), "no engine runs it"


@pytest.mark.parametrize("engine", ENGINES)
def test_line_2_near_and_far_sequences_are_right_beside_each_other(engine: str, tmp_path: Path) -> None:
  """Prompts within the original context have the short factors of their rotary embedding, in a batch with long ones, too."""
  near, far = Form("phi3_5_mini", "gguf" if engine == "llama_cpp" else "hub"), Form("phi3_5_mini_100", "hub")
  stages = Stages(f"{engine}:none" if engine == "onnx" else engine, opened(near, tmp_path), kv_type="f32")
  asked = [*near.references(), *((ids, log_probabilities(stages, ids)) for ids, _ in far.references())]
  rows: dict[int, list[np.ndarray]] = {}
  longest = max(len(ids) for ids, _ in asked)
  for back in range(longest, 0, -1):  # from the right, so that all decode together at the end
    entries = [(i, len(ids) - back, ids[-back:][:1]) for i, (ids, _) in enumerate(asked) if back < len(ids)]
    entries += [(i, 0, ids[:1]) for i, (ids, _) in enumerate(asked) if back == len(ids)]
    out = stages.step(entries, far=[i for i, (ids, _) in enumerate(asked) if len(ids) > stages.near_context])
    for (i, _, _), row in zip(entries, out, strict=True):
      rows.setdefault(i, []).append(row.copy())
  for i, (ids, expected) in enumerate(asked):
    assert np.abs(of_tokens(np.stack(rows[i]), ids) - expected).max() <= TOLERANCE
  stages.close()


@pytest.mark.parametrize("form", [param for param in FORMS if not opens(param.values[0])])
def test_what_nobody_reads_is_refused_in_words(form: Form, tmp_path: Path) -> None:
  with pytest.raises((ModelFilesError, UnsupportedModelError)) as refusal:
    opened(form, tmp_path)
  assert len(str(refusal.value)) > 30
