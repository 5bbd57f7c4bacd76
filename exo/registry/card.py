"""How the files beside this one write their cards down."""

from __future__ import annotations

from collections.abc import Mapping

from exo.model_card import HubSource, Kind, ModelCard, Shape
from exo.sampling_defaults import SILENT, SamplingDefaults

_MOST = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
# what those who convert models to GGUF usually publish of one, by the names of their accounts
_QUANTIZATIONS = {
    "bartowski": ("Q2_K", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0"),
    "unsloth": ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0"),
    "ggml-org": ("Q4_K_M", "Q8_0", "F16"),
    "LiquidAI": ("Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"),
    "ibm-granite": _MOST,
}
_LARGE = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
_LARGE_WEIGHTS = 200_000_000_000
FP8 = {"safetensors": "FP8"}


def card(
    model_id: str,
    pretty_name: str,
    kind: Kind,
    shape: Shape | tuple[int, int, int],
    safetensors: str | None = None,
    mlx: str | None = None,
    gguf: str | None = None,
    *,
    default: str = "safetensors",
    file_bytes: int | None = None,
    packings: Mapping[str, str] | None = None,
    quantizations: tuple[str, ...] | None = None,
    can: str = "",
    sampling: SamplingDefaults = SILENT,
) -> ModelCard:
  """`shape` may be (layers, weights, numbers of KV of a layer and token) where our sum does not cover the architecture.
  `mlx` is a repository of mlx-community where it names no account. `default` is the format that is taken where nobody knows
  which engines there are.
  """
  if mlx is not None and "/" not in mlx:
    mlx = f"mlx-community/{mlx}"
  named = {"gguf": gguf, "mlx": mlx, "safetensors": safetensors}
  repos = {kind: HubSource(repo) for kind, repo in named.items() if repo}
  source = repos.get(default) or next(iter(repos.values()))
  sized = shape if isinstance(shape, Shape) else None
  layers, parameters, kv = (shape.layers, shape.parameters, shape.kv_elements) if isinstance(shape, Shape) else shape
  if quantizations is None and gguf:
    quantizations = _QUANTIZATIONS[gguf.partition("/")[0]] if parameters < _LARGE_WEIGHTS else _LARGE
  return ModelCard(
      model_id, pretty_name, source, layers, parameters, repos, file_bytes, kind, kv,
      sized.embedding_weights if sized else 0, sized.tied if sized else False, packings or {}, quantizations or (),
      tuple(can.split()), sampling
  )
