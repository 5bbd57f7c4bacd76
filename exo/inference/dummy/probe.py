"""Whether the dummy engine can run: always, and never by itself."""

from exo.inference.engines import EngineProbe


def probe() -> EngineProbe:
  return EngineProbe(True, "none", "it computes nothing", preference=-1)
