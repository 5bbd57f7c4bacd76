"""What a model's answers are drawn with where nobody says anything else: its files before exo's registry, and that before what suits most."""

from __future__ import annotations

from exo.download.model_names import version_in
from exo.models import BUILT_IN, Registry
from exo.sampling_defaults import SamplingDefaults

SUITS_MOST = SamplingDefaults(temperature=0.7, top_p=0.95)


def model_sampling(model_id: str, said: SamplingDefaults, registry: Registry = BUILT_IN) -> SamplingDefaults:
  """Of a model whose files say `said`. The node that was asked decides, by the model's name alone."""
  return said.over(registry.sampling_of(version_in(model_id)[0])).over(SUITS_MOST)
