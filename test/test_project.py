"""The project as a whole: layers, imports without side effects, generated files, install script, lock file."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from test.support.nodes import ROOT

PACKAGE = ROOT / "exo"
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
    if not path.name.startswith("test_") and path.name != "__init__.py"
)
HEAVY = {"mlx", "tinygrad", "onnxruntime", "onnx", "transformers", "torch", "huggingface_hub"}

# each package may import those of the lines below its own, and its own
LAYERS = [
    {"exo.main", "exo.__main__"},
    {"exo.cli"},
    {"exo.api", "exo.viz", "exo.web"},
    {"exo.orchestration"},
    {"exo.networking", "exo.download", "exo.worker"},
    {"exo.inference"},
    {"exo.topology", "exo.models", "exo.registry", "exo.model_card", "exo.model_file", "exo.sampling_defaults"},
    {"exo.inference.shard"},
    {
        "exo.config", "exo.errors", "exo.log", "exo.tasks", "exo.runtime_file", "exo.machine", "exo.control_groups",
        "exo.proxies", "exo.certificates", "exo.network_causes", "exo.private_files", "exo.library_files",
        "exo.standard_streams", "exo.system_figures", "exo.descriptors", "exo.text_writer", "exo.file_calls",
        "exo.oldest", "exo.bounds", "exo"
    },
]


def layer_of(module: str) -> int:
  parts = module.split(".")
  for length in range(len(parts), 0, -1):
    for level, names in enumerate(LAYERS):
      if ".".join(parts[:length]) in names:
        return level
  raise AssertionError(f"{module} has no layer")


def imports_of(module: str) -> set[str]:
  tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      found.add(node.module)
      found |= {f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in MODULES}
  return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_only(module: str) -> None:
  for imported in imports_of(module):
    if imported == "exo" or imported.startswith("exo."):
      assert layer_of(imported) >= layer_of(module), f"{module} imports {imported}, which lies above it"
  branches = {"exo.networking", "exo.download", "exo.worker"}
  own = ".".join(module.split(".")[:2])
  if own in branches:
    assert not {".".join(i.split(".")[:2]) for i in imports_of(module)} & branches - {own}


@pytest.mark.parametrize("module", MODULES)
def test_engines_stay_in_their_folders(module: str) -> None:
  heads = {name.partition(".")[0] for name in imports_of(module)} & {"mlx", "mlx_lm", "tinygrad", "onnxruntime", "onnx"}
  folders = {"mlx": "mlx", "mlx_lm": "mlx", "tinygrad": "tinygrad", "onnxruntime": "onnx", "onnx": "onnx"}
  assert all(module.startswith(f"exo.inference.{folders[head]}.") for head in heads)
  if "node_service_pb2" in " ".join(imports_of(module)):
    assert module.startswith("exo.networking.grpc.")


def test_importing_every_light_module_has_no_side_effect() -> None:
  """No heavy library, thread, socket, output or change of the environment; arguments are left alone."""
  light = [
      m for m in MODULES if not re.match(r"exo\.inference\.(onnx|mlx|tinygrad)\.(?!probe)", m) and m != "exo.__main__"
  ]
  code = f"""
import os, sys, threading
before = dict(os.environ)
sys.argv = ["x", "--nonsense"]
import importlib
for module in {light!r}:
  importlib.import_module(module)
assert dict(os.environ) == before
assert threading.active_count() == 1, threading.enumerate()
heavy = {HEAVY!r} & {{name.partition(".")[0] for name in sys.modules}}
assert not heavy, heavy
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
  assert done.returncode == 0, done.stderr
  assert done.stdout == "" and done.stderr == ""


def test_the_configuration_alone_reads_the_environment() -> None:
  # the second hands its environment on to processes, the third and fourth to pip, the fifth sets a switch of onnxruntime's, the last
  # folders of libraries
  allowed = {
      "exo.config", "exo.child_process", "exo.download.wheel", "exo.pip_environment", "exo.inference.onnx.graph",
      "exo.library_files"
  }
  for module in MODULES:
    source = (ROOT / (module.replace(".", "/") + ".py")).read_text()
    assert module in allowed or not re.search(r"os\.environ|getenv", source), module


def test_generated_protobuf_is_of_this_proto(tmp_path: Path) -> None:
  pytest.importorskip("grpc_tools")
  proto = "exo/networking/grpc/node_service.proto"
  subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "--proto_path=.", f"--python_out={tmp_path}", proto],
                 cwd=ROOT,
                 check=True)
  made = (tmp_path / "exo/networking/grpc/node_service_pb2.py").read_text()
  assert made == (ROOT / "exo/networking/grpc/node_service_pb2.py").read_text(), "run scripts/compile_proto.sh"


def test_entry_points_of_the_mission() -> None:
  from exo.api.chatgpt_api import ChatGPTAPI
  from exo.main import run
  from exo.orchestration.node import Node
  assert callable(run) and isinstance(ChatGPTAPI, type) and isinstance(Node, type)
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  assert project["scripts"]["exo"] == "exo.main:run" and project["license"] == "Apache-2.0"
  assert "formatting" in project["optional-dependencies"]


def test_directly_runnable_tests(model_home: Path) -> None:
  for path in ("test/test_tokenizers.py", "exo/topology/test_ring_memory_weighted_partitioning_strategy.py"):
    done = subprocess.run([sys.executable, path],
                          capture_output=True,
                          text=True,
                          cwd=ROOT,
                          check=False,
                          env=os.environ | {"EXO_TEST_HOME": str(model_home)})
    assert done.returncode == 0 and "OK" in done.stderr, done.stderr


def test_what_is_read_at_run_time_is_installed_with_the_package() -> None:
  settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
  patterns = settings["tool"]["setuptools"]["package-data"]["exo"]
  read = [
      path.relative_to(PACKAGE) for path in PACKAGE.rglob("*")
      if path.is_file() and path.suffix not in (".py", ".pyc", ".pyi")
  ]
  assert read and [str(path) for path in read if not any(path.match(pattern) for pattern in patterns)] == []


def test_format_py_formats_and_checks(tmp_path: Path) -> None:
  file = tmp_path / "ugly.py"
  file.write_text("def f( a,b ):\n        return a+b\n")
  check = [sys.executable, "format.py", "--check", str(file)]
  assert subprocess.run(check, cwd=ROOT, capture_output=True, check=False).returncode == 1
  assert subprocess.run([sys.executable, "format.py", str(file)], cwd=ROOT, check=False).returncode == 0
  assert file.read_text() == "def f(a, b):\n  return a + b\n"
  assert subprocess.run(check, cwd=ROOT, capture_output=True, check=False).returncode == 0
  missing = subprocess.run([sys.executable, "format.py", "nothing"],
                           cwd=ROOT,
                           capture_output=True,
                           text=True,
                           check=False)
  assert missing.returncode == 2 and "there is no nothing" in missing.stderr


def test_configure_mlx_computes_and_sets_the_limit(tmp_path: Path) -> None:
  """With a macOS that answers like a Mac of 64 GB."""
  for name, body in {
      "uname": 'echo Darwin',
      "id": 'echo 0',
      "sysctl": f'case "$*" in "-n hw.memsize") echo 68719476736;; *) echo "$*" >> {tmp_path}/calls;; esac',
  }.items():
    (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
    (tmp_path / name).chmod(0o755)
  env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
  done = subprocess.run(["bash", "configure_mlx.sh"], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
  assert "wired limit: 60416 MB" in done.stdout
  assert (tmp_path / "calls").read_text().splitlines()[0] == "iogpu.wired_limit_mb=60416"
  here = subprocess.run(["bash", "configure_mlx.sh"], cwd=ROOT, capture_output=True, text=True, check=False)
  assert here.returncode == 0


def fake_pythons(folder: Path) -> None:
  """Shims that stand in PATH and fail, as pyenv's do."""
  folder.mkdir()
  for name in ("python3.12", "python3.13", "python3.14", "python3", "python"):
    (folder / name).write_text("#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("how", ["source install.sh; echo status=$?", "bash install.sh; echo status=$?"])
def test_install_without_a_python_fails_with_one_sentence(tmp_path: Path, how: str) -> None:
  fake_pythons(tmp_path / "bin")
  (tmp_path / "install.sh").write_text((ROOT / "install.sh").read_text())
  env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}
  for name in ("python3.12", "python3.13", "python3"):
    if (Path("/usr/bin") / name).exists() and subprocess.run([
        f"/usr/bin/{name}", "-c", "import sys; sys.exit(sys.version_info < (3, 12))"
    ],
                                                             check=False).returncode == 0:
      pytest.skip("this system has a suitable Python in /usr/bin")
  done = subprocess.run(["bash", "-c", how], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
  assert done.stdout == "status=1\n"
  assert done.stderr.count("\n") == 1 and "Python 3.12 or newer" in done.stderr


def test_install_finds_pyenvs_versions_behind_broken_shims(tmp_path: Path) -> None:
  root = tmp_path / "pyenv"
  root.mkdir()
  fake_pythons(root / "shims")
  version = root / "versions" / "3.12.9" / "bin"
  version.mkdir(parents=True)
  (version / "python3").symlink_to(sys.executable)
  script = (ROOT / "install.sh").read_text().split("_exo_main()")[0] + "\n_exo_find_python\n"
  env = {"PATH": f"{root / 'shims'}:/usr/bin:/bin", "HOME": str(tmp_path)}
  done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=False)
  assert done.returncode == 0
  found = done.stdout.strip()
  assert found == str(version / "python3") or "shims" not in found


def test_engines_can_be_told_from_the_rest() -> None:
  lines = {
      kind: subprocess.run([sys.executable, "scripts/requirements.py", kind, "[test]"],
                           cwd=ROOT,
                           capture_output=True,
                           text=True,
                           check=True).stdout.splitlines()
      for kind in ("core", "engines")
  }
  names = {kind: {re.split(r"[\[<>=~ ]", line)[0] for line in found} for kind, found in lines.items()}
  assert {"tinygrad", "onnxruntime"} <= names["engines"] and {"aiohttp", "grpcio", "pytest"} <= names["core"]
  assert not names["core"] & names["engines"]


@pytest.mark.parametrize(
    "platforms", [
        ["macosx_14_0_arm64", "macosx_13_0_arm64", "macosx_12_0_arm64", "macosx_11_0_arm64", "macosx_10_13_universal2"],
        pytest.param([
            "manylinux_2_35_aarch64", "manylinux_2_34_aarch64", "manylinux_2_31_aarch64", "manylinux_2_28_aarch64",
            "manylinux_2_27_aarch64", "manylinux_2_26_aarch64", "manylinux_2_24_aarch64", "manylinux_2_17_aarch64",
            "manylinux2014_aarch64"
        ],
                     marks=pytest.mark.slow),
    ],
    ids=["macOS arm64", "Linux aarch64"]
)
def test_the_lock_resolves_elsewhere(platforms: list[str], tmp_path: Path) -> None:
  """Every locked version that such a machine would install has a wheel for it."""
  from pip._vendor.packaging.requirements import Requirement
  system, machine = ("darwin", "arm64") if "arm64" in platforms[0] else ("linux", "aarch64")
  there = {
      "sys_platform": system, "platform_machine": machine, "os_name": "posix", "python_version": "3.12",
      "python_full_version": "3.12.1", "implementation_name": "cpython", "platform_python_implementation": "CPython",
      "platform_system": system.capitalize(), "extra": ""
  }
  wanted = []
  for line in (ROOT / "requirements.lock").read_text().splitlines():
    if line and not line.startswith(("#", " ")):
      requirement = Requirement(line)
      if requirement.marker is None or requirement.marker.evaluate(there):
        wanted.append(f"{requirement.name}{requirement.specifier}")
  assert any(w.startswith("mlx==") for w in wanted) and any(w.startswith("onnxruntime==") for w in wanted)
  (tmp_path / "there.txt").write_text("\n".join(wanted))
  flags = [flag for platform in platforms for flag in ("--platform", platform)]
  done = subprocess.run([
      sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--only-binary=:all:",
      "--ignore-installed", "--target",
      str(tmp_path), "--python-version", "3.12", *flags, "-r",
      str(tmp_path / "there.txt")
  ],
                        capture_output=True,
                        text=True,
                        check=False)
  assert done.returncode == 0, done.stderr
