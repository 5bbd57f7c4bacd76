"""What is measured: which files, on how many cores, with prompts of which lengths."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

from test.support.shaped_models import LLAMA_1B, LLAMA_3B, TINY, Shape, write_shaped

SHAPES = {"1b": LLAMA_1B, "3b": LLAMA_3B, "tiny": TINY}


@dataclass(frozen=True, slots=True)
class Sizes:
  """Numbers of tokens and of streams."""
  prompts: tuple[int, ...] = (300, 4000)
  decoded: int = 64
  streams: tuple[int, ...] = (8, 16)
  stream_prompt: int = 60
  ring_prompt: int = 1000
  ring_streams: int = 6


TINY_SIZES = Sizes((24, 80), 48, (3, ), 12, 40, 2)


@dataclass(frozen=True, slots=True)
class Work:
  """`file` lies alone with such files in its folder, under a name that is its model's. `state` is a folder for what nodes keep.
  `server` is "wheel", a folder with llama.cpp's programs, or "" for none."""
  file: Path
  shape: Shape
  threads: int
  sizes: Sizes
  pairs: int
  most_pairs: int
  server: str
  state: Path

  @property
  def name(self) -> str:
    return f"{self.file.stem}, {self.threads} thread{'s' if self.threads > 1 else ''}"

  @property
  def model(self) -> str:
    return self.file.stem

  @property
  def cores(self) -> list[int]:
    """Those that compute."""
    return allowed_cores()[:self.threads]

  def fresh(self, count: int) -> list[int]:
    """Ids of words that no prompt before began with."""
    return [_draw.randrange(512, self.shape.words - 2) for _ in range(count)]


_draw = random.Random()
_cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def allowed_cores() -> list[int]:
  """Of this process when it started."""
  return _cores


def step_aside(threads: int) -> None:
  """The client is not what is measured: it computes on the other cores, where there are some."""
  os.sched_setaffinity(0, _cores[threads:] or _cores)


def pinned(cores: list[int]) -> tuple[str, ...]:
  """What a command begins with that is to run on these cores alone."""
  return "taskset", "-c", ",".join(map(str, cores))


def model_file(folder: Path, name: str, encoding: str) -> Path:
  """Written unless it is there; the one of 3B takes a minute."""
  path = folder / f"{name}-{encoding}.gguf"
  if not path.exists():
    half = path.with_suffix(".part")
    write_shaped(half, SHAPES[name], encoding)
    half.rename(path)
  return path
