"""Format Python files with yapf, in this project's style: `python format.py ./exo` (or any files and folders).

Needs the `formatting` extra: pip install -e '.[formatting]'. With --check nothing is written and the exit status tells.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
  check = "--check" in arguments
  paths = [argument for argument in arguments if argument != "--check"
           ] or [str(ROOT / name) for name in ("exo", "test", "scripts")]
  for path in paths:
    if not Path(path).exists():
      print(f"format.py: there is no {path}", file=sys.stderr)
      return 2
  try:
    import yapf  # noqa: F401
  except ImportError:
    print("format.py: yapf is missing: pip install -e '.[formatting]'", file=sys.stderr)
    return 2
  mode = ["--diff"] if check else ["--in-place"]
  command = [
      sys.executable, "-m", "yapf", *mode, "--recursive", "--parallel", "--style",
      str(ROOT / "pyproject.toml"), "--exclude", "*_pb2.py", "--exclude", "*_pb2.pyi", *paths
  ]
  return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
