"""`generation_config.json`, which many folders have beside a model: what its makers wish for answers, and tokens that end them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exo.errors import ModelFilesError, in_words
from exo.inference.weights.safetensors_checkpoint import read_json

GENERATION_CONFIG = "generation_config.json"


def read_generation_config(folder: Path) -> tuple[dict[str, Any], str]:
  """What it says, and why nothing of it could be read, "" where it could or where there is none. A model runs without it, so that no fault
  of it keeps one from running.
  """
  try:
    return read_json(folder / GENERATION_CONFIG), ""
  except ModelFilesError as error:
    return {}, error.message
  except OSError as error:
    return {}, f"{GENERATION_CONFIG} cannot be read: {in_words(error)}"
