"""What `config.json` may leave out, by type of model: `python scripts/families/config_defaults.py` writes exo/inference/families/defaults.json.

It wants transformers, whose configuration classes have these values (`pip install transformers`; torch is not needed). Only types are
taken that an engine of exo knows. `names` are other words for a key, `rope_theta` is where rotary frequencies begin if nothing is said,
and `text` the type of the language model inside.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "exo" / "inference" / "families" / "defaults.json"
sys.path.insert(0, str(ROOT))

from exo.inference.mlx.model_types import modules, package_folder  # noqa: E402

_NO_MODELS_BUSINESS = (
    "transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype", "chunk_size_feed_forward",
    "is_encoder_decoder", "id2label", "label2id", "problem_type", "initializer_range", "use_cache",
    "output_router_logits", "router_aux_loss_coef", "pad_token_id", "bos_token_id", "eos_token_id", "num_logits_to_keep",
    "rescale_prenorm_residual", "use_mamba_kernels", "pretraining_tp", "is_decoder", "add_cross_attention"
)  # yapf: disable
_TRAINING = ("dropout", "_pdrop", "summary_", "time_step_floor", "aux_loss", "z_loss")
_TEXT = "text_config"


def _plain(value: Any) -> bool:
  """Whether JSON can say it."""
  if isinstance(value, (list, tuple)):
    return all(map(_plain, value))
  return isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))


def described(kind: type) -> dict[str, Any]:
  """What one class of transformers takes where nothing is said. `None`s are left out: they stand for what follows from other keys."""
  left: dict[str, Any] = {}
  for field in dataclasses.fields(kind):
    if field.name in _NO_MODELS_BUSINESS or any(word in field.name for word in _TRAINING):
      continue
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
      value = field.default_factory()
    if value is not dataclasses.MISSING and value is not None and _plain(value):
      left[field.name] = list(value) if isinstance(value, tuple) else value
  found: dict[str, Any] = {"left_out": dict(sorted(left.items()))}
  if names := dict(getattr(kind, "attribute_map", {}) or {}):
    found["names"] = dict(sorted(names.items()))
  if theta := getattr(kind, "default_theta", None):
    found["rope_theta"] = theta
  return found


def main() -> int:
  import transformers
  from transformers.models.auto.configuration_auto import CONFIG_MAPPING

  package = package_folder()
  known = set(modules(package)) if package is not None else set()
  types: dict[str, Any] = {}
  for name in sorted(known | {f"{name}_text" for name in known} | {"gemma3", "mistral", "ministral", "hunyuan_v1_moe"}):
    if name not in CONFIG_MAPPING:
      continue
    kind = CONFIG_MAPPING[name]
    text = (getattr(kind, "sub_configs", None) or {}).get(_TEXT)
    found = described(kind)
    if text is not None:
      inner = getattr(text, "model_type", "") or getattr(kind(), _TEXT).model_type
      found = {"text": inner}
      if inner in CONFIG_MAPPING:
        types.setdefault(inner, described(CONFIG_MAPPING[inner]))
    types[name] = found
  said = {"transformers": transformers.__version__, "types": dict(sorted(types.items()))}
  lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in said["types"].items()]
  head = f'{{\n"transformers": {json.dumps(said["transformers"])},\n"types": {{\n'
  FILE.write_text(head + ",\n".join(lines) + "\n}\n}\n")
  print(f"{len(types)} types, {FILE.stat().st_size} bytes: {FILE.relative_to(ROOT)}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
