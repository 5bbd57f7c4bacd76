"""What this machine's processor can do, in the names by which GGML says what it was built for."""

from __future__ import annotations

import re
from pathlib import Path

_X86 = {
    "AVX": ("avx", ), "AVX2": ("avx2", ), "F16C": ("f16c", ), "FMA": ("fma", ), "BMI2": ("bmi2", ), "AVX_VNNI": ("avx_vnni", ),
    "AVX512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"), "AVX512_VBMI": ("avx512vbmi", ),
    "AVX512_VNNI": ("avx512_vnni", ), "AVX512_BF16": ("avx512_bf16", ), "AMX_INT8": ("amx_tile", "amx_int8")
}  # yapf: disable
_ARM = {
    "NEON": ("asimd", ), "DOTPROD": ("asimddp", ), "MATMUL_INT8": ("i8mm", ), "SVE": ("sve", ), "SME": ("sme", )
}  # yapf: disable


def processor_instructions(cpu_info: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
  """Those that matter for a model's speed; none where the system does not tell."""
  try:
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpu_info.read_text(errors="replace"), re.MULTILINE)
  except OSError:
    return ()
  flags = set(found.group(1).split()) if found else set()
  return tuple(name for name, needs in (_X86 | _ARM).items() if flags.issuperset(needs))
