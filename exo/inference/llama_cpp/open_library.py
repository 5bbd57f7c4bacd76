"""Opening a shared library with what lies beside it, and in words what it misses."""

from __future__ import annotations

import ctypes
import platform
import re
from pathlib import Path
from typing import Any

from exo.errors import EngineUnavailableError

_MISSING = re.compile(
    r"(lib[^\s:/]+\.so[.\d]*): cannot open shared object file|Library not loaded: \S*?(lib[^\s/]+\.dylib)"
)
_VERSION = re.compile(r"version [`'](GLIBC|GLIBCXX|CXXABI)_([\d.]+)' not found")
# what brings the libraries that no wheel bundles, or that a build for a graphics processor needs
_PACKAGES = {
    "libgomp": "libgomp1 (Debian, Ubuntu), libgomp (Fedora, Alpine) or gcc-libs (Arch)",
    "libomp": "libomp (Homebrew, Fedora, Arch) or libomp5 (Debian, Ubuntu)",
    "libstdc++": "libstdc++6 (Debian, Ubuntu), libstdc++ (Fedora, Alpine) or gcc-libs (Arch)",
    "libgcc_s": "libgcc-s1 (Debian, Ubuntu), libgcc (Fedora, Alpine) or gcc-libs (Arch)",
    "libvulkan": "libvulkan1 (Debian, Ubuntu), vulkan-loader (Fedora, Alpine) or vulkan-icd-loader (Arch)",
    "libopenblas": "libopenblas0 (Debian, Ubuntu) or openblas (Fedora, Alpine, Arch)",
    "libcuda": "NVIDIA's driver",
    "libcudart": "NVIDIA's CUDA toolkit",
    "libcublas": "NVIDIA's CUDA toolkit",
    "libcublasLt": "NVIDIA's CUDA toolkit",
    "libamdhip64": "AMD's ROCm",
    "libhipblas": "AMD's ROCm",
    "librocblas": "AMD's ROCm",
}


def open_library(path: Path, mode: int = ctypes.DEFAULT_MODE, tried: set[Path] | None = None) -> Any:
  """Builds whose parts do not know where they lie get from the same folder what they miss. Raises `EngineUnavailableError`."""
  tried = set() if tried is None else tried
  while True:
    try:
      return ctypes.CDLL(str(path), mode=mode)
    except OSError as error:
      part = _beside(path.parent, str(error), tried)
      if part is None:
        raise EngineUnavailableError(why_unopened(path.name, str(error))) from error
    tried.add(part)
    open_library(part, ctypes.RTLD_GLOBAL, tried)  # found by its name from now on


def _beside(folder: Path, error: str, tried: set[Path]) -> Path | None:
  """The file in `folder` that the loader misses, which may be there under a name with more or less of its version."""
  found = _MISSING.search(error)
  name = found.group(1) or found.group(2) if found else ""
  if not name:
    return None
  stem = re.split(r"(?<=\.so)|(?=\.dylib)", name)[0]
  paths = [folder / name, *sorted(folder.glob(f"{stem}*"))]
  return next((path for path in paths if path.is_file() and path not in tried), None)


def why_unopened(name: str, error: str) -> str:
  """A sentence of what the system's loader says of the library `name`, with what to install."""
  if found := _MISSING.search(error):
    missing = found.group(1) or found.group(2)
    brings = _PACKAGES.get(re.split(r"\.(so|dylib)|-", missing)[0])
    what = f"install {brings}" if brings else "install the package that brings it"
    return f"{name} needs {missing}, which is missing: {what}"
  if found := _VERSION.search(error):
    kind, version = found.groups()
    has = f", and this is {platform.libc_ver()[1]}" if kind == "GLIBC" and platform.libc_ver()[1] else ""
    what = "glibc" if kind == "GLIBC" else "a libstdc++ with " + kind
    return f"{name} needs {what} {version}{has}: take a newer system, or `exo engine build`, which builds one for this one"
  if "No such file" in error:
    return f"{name} is missing"
  if "invalid ELF header" in error or "file too short" in error or "not a mach-o file" in error:
    return f"{name} is no shared library"
  if "wrong ELF class" in error or "incompatible architecture" in error:
    return f"{name} is built for another kind of processor"
  return f"{name} cannot be loaded: {error.strip().splitlines()[-1] if error.strip() else 'the system does not say why'}"
