"""What a stage takes of memory is what its plan says, while it loads and afterwards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from exo.inference.engine import LoadOptions
from exo.inference.engines import load_engine, probe_engine
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import open_checkpoint
from test.support.shaped_models import TINY, write_shaped

ENGINES = [name for name in ("onnx", "tinygrad", "mlx") if probe_engine(name).available]


def mapped_bytes(path: Path) -> int:
  """Of a file's pages, those that this process has mapped and touched."""
  found = 0
  for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE):
    if str(path) in mapping.partition("\n")[0]:
      found += int(re.search(r"^Rss:\s+(\d+) kB", mapping, re.MULTILINE)[1]) * 1024
  return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system does not tell what is mapped")
@pytest.mark.parametrize("engine", ENGINES)
def test_line_4_a_load_leaves_nothing_of_its_file_in_memory(engine: str, tmp_path: Path) -> None:
  path = write_shaped(tmp_path / "m.gguf", TINY, "Q8_0")

  shard, options = Shard("m", 0, TINY.layers - 1, TINY.layers), LoadOptions(2**32, 1)
  stage = load_engine(engine).load(shard, open_checkpoint(path), options, lambda _: None)
  assert mapped_bytes(path) < path.stat().st_size / 10
  stage.close()
