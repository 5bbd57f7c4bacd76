"""The process that tries a library of llama.cpp: what it does to its process is no harm. It writes a line of JSON for each thing that it
has found out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from exo.errors import EngineError, EngineUnavailableError
from exo.inference.llama_cpp.binding import LogCallback, load_library
from exo.inference.llama_cpp.library_choice import PLAIN
from exo.inference.llama_cpp.trial_model import live_through, measured_speed


def main() -> None:
  what, how, path = sys.argv[-3:]
  plain = how == PLAIN
  os.putenv("OMP_WAIT_POLICY", "passive")  # threads that spin would wait for whoever else computes
  try:
    library = load_library(Path(path))
  except EngineUnavailableError as error:
    _say({"refused": error.message})
    return
  silent = LogCallback(lambda level, text, data: None)
  library.llama_log_set(silent, None)
  library.llama_backend_init()
  try:
    if what == "measure":
      prompt, decode = measured_speed(library, plain)
      _say({"prompt": prompt, "decode": decode})
      return
    version, info = library.llama_version().decode(errors="replace"), library.llama_print_system_info()
    _say({
        "version": version, "ggml": library.ggml_version().decode(errors="replace"),
        "info": info.decode(errors="replace")
    })
    live_through(library, plain)
    _say({"lives": True})
  except EngineError as error:
    _say({"refused": f"{Path(path).name} fails in a trial: {error.message}"})


def _say(found: dict[str, Any]) -> None:
  sys.stdout.write(json.dumps(found) + "\n")
  sys.stdout.flush()
