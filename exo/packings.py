"""How many bytes a weight takes on disk, by how it is packed, in the words of the repositories."""

from __future__ import annotations

# measured on files that are published, scales and what some tensors take beyond the others included; of MLX's the
# scale and bias of 16 bits for 64 weights
_BYTES = {
    "F32": 4.0, "F16": 2.0, "BF16": 2.0, "FP8": 1.01, "INT4": 0.56, "8bit": 1.0625, "6bit": 0.8125, "4bit": 0.5625,
    "3bit": 0.4375, "Q8_0": 1.0635, "Q6_K": 0.821, "Q6_K_L": 0.85, "Q5_1": 0.75, "Q5_0": 0.70, "Q5_K_L": 0.74,
    "Q5_K_M": 0.714, "Q5_K_S": 0.697, "Q4_1": 0.642, "Q4_K_L": 0.64, "Q4_K_XL": 0.62, "Q4_K_M": 0.61, "Q4_K_S": 0.584,
    "Q4_0": 0.58, "MXFP4": 0.56, "IQ4_NL": 0.583, "IQ4_XS": 0.554, "Q3_K_XL": 0.55, "Q3_K_L": 0.538, "Q3_K_M": 0.50,
    "Q3_K_S": 0.456, "IQ3_M": 0.471, "IQ3_S": 0.458, "IQ3_XS": 0.438, "IQ3_XXS": 0.408, "Q2_K_XL": 0.42, "Q2_K_L": 0.41,
    "Q2_K": 0.396, "IQ2_M": 0.367, "IQ2_S": 0.34, "IQ2_XS": 0.325, "IQ2_XXS": 0.30, "IQ1_M": 0.27, "IQ1_S": 0.25,
    "TQ1_0": 0.22
}  # yapf: disable
FULL = frozenset({"F32", "F16", "BF16"})


def bytes_per_weight(packing: str) -> float | None:
  """None where nothing is known of it."""
  return _BYTES.get(packing) or _BYTES.get(packing.upper().removeprefix("UD-"))
