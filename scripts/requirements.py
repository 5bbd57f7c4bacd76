"""Lists exo's requirements for this platform, one a line: `core [extras]` or `engines`. Used by install.sh.

Only needs what pip itself brings, since it runs before anything is installed.
"""

import sys
import tomllib
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

ENGINES = {"mlx", "mlx-lm", "onnx", "onnxruntime", "tinygrad"}
PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]


def requirements(extras: list[str]) -> list[str]:
  """Requirements of the project and its extras whose markers hold here."""
  found = list(PROJECT["dependencies"])
  for extra in extras:
    for line in PROJECT["optional-dependencies"][extra]:
      inner = Requirement(line)
      found += requirements(sorted(inner.extras)
                            )[len(PROJECT["dependencies"]):] if inner.name == PROJECT["name"] else [line]
  return [line for line in found if (marker := Requirement(line).marker) is None or marker.evaluate()]


def main(kind: str, extras: str = "") -> None:
  lines = requirements([name for name in extras.strip("[]").split(",") if name])
  for line in lines:
    if (Requirement(line).name in ENGINES) == (kind == "engines"):
      print(line.partition(";")[0].strip())


if __name__ == "__main__":
  main(*sys.argv[1:])
