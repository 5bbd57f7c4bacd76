"""Whether onnxruntime is there. It runs on any CPU, hence the choice where no accelerator is."""

import importlib.util

from exo.inference.engines import EngineProbe


def probe() -> EngineProbe:
  missing = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
  if missing:
    return EngineProbe(
        False, "CPU", f"the package {' and '.join(missing)} is not installed (pip install {' '.join(missing)})"
    )
  return EngineProbe(True, "CPU", "no accelerator was found, and onnxruntime is the fastest on a CPU", preference=1)
