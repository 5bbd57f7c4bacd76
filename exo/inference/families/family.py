"""What is known of a family of models that its files do not say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class LayerKind(StrEnum):
  """What a layer keeps of the text before: keys and values of all of it, or of a window, or a state; or nothing at all."""
  FULL = "full"
  WINDOW = "window"
  ATTENTION = "attention"
  RECURRENT = "recurrent"
  FEED_FORWARD = "feed_forward"


@dataclass(frozen=True, slots=True)
class Every:
  """One layer in `period` is of the other kind: the last of them, or the first."""
  period: int
  first: bool = False

  def is_other(self, layer: int) -> bool:
    return layer % self.period == (0 if self.first else self.period - 1)


@dataclass(frozen=True, slots=True)
class Later:
  """What a stage that does not begin with the first layer needs, since llama.cpp does something with a model's input: metadata that
  are left out, tensors that are zeros there, and the node of the graph that takes what comes in (see `Cut.feed`).
  """
  drop: tuple[str, ...] = ()
  zero: tuple[str, ...] = ()
  feed: str = ""


@dataclass(frozen=True, slots=True)
class Unsaid:
  """Metadata that llama.cpp guesses from a model's numbers of `layers` and `words`, and would not of a stage."""
  layers: tuple[int, ...]
  words: int
  key: str
  value: int


@dataclass(frozen=True, slots=True)
class Cut:
  """How layers a to b of a GGUF model become a model of its own that llama.cpp computes as it computes the whole.

  Where the file does not list them, `windows` says which layers have full attention among such with a window, and `recurrent` which
  have attention among such with a state. A stage has at least one layer of each kind in `needs`; one that is missing is there
  as zeros, which change nothing. `starts_at`: the graph itself counts layers, so that a stage begins at a multiple of that and of what the
  key `starts_at_key` says, with zeros before. `least` is the smallest number of layers, `not_so_many` are numbers that are taken
  for another model, and a whole of `same` layers is not cut, since its stages must have as many, which takes the memory of the whole.

  `feed` is the node that is overwritten with a stage's input where llama.cpp refuses or changes what is given as embeddings; with
  `scales_tokens` it scales tokens' embeddings, and given ones not. `out` is the node with a layer's result. `fill` are metadata that are
  written where the file has none, as are those of `unsaid` models. `own_head`: a file without a head of its own is refused, where others
  take the embedding for it. `unused_without_full` are tensors that are refused in a stage without a layer of full attention.
  `only_networks`: some layers are nothing but a feed forward network. `refused` is why there is no cut at all.
  """
  windows: Every | None = None
  recurrent: Every | None = None
  needs: tuple[LayerKind, ...] = ()
  starts_at: int = 1
  starts_at_key: str = ""
  later: Later = Later()
  feed: str = ""
  out: str = "l_out"
  scales_tokens: bool = False
  least: int = 1
  not_so_many: tuple[int, ...] = ()
  same: tuple[int, ...] = ()
  fill: tuple[tuple[str, int], ...] = ()
  unsaid: tuple[Unsaid, ...] = ()
  own_head: bool = False
  unused_without_full: tuple[str, ...] = ()
  only_networks: bool = False
  refused: str = ""

  @property
  def takes_scaled(self) -> bool:
    """Whether embeddings of tokens are to be given as they are after llama.cpp's scaling."""
    return self.scales_tokens or self.feed == "inp_scaled"


@dataclass(frozen=True, slots=True)
class Line:
  """What distinguishes a family within the Llama line, whose decoder exo's own engines compute.

  `norm_offset` is added to the weights of norms, `scales_embeddings` by the root of their width, `gelu` whatever the configuration says.
  `qk_norm`: queries and keys are normed; `post_norms`: what attention and feed forward network give is, too. `windows` says which layers
  have full attention where the configuration does not list them; `windows_if_asked`: there are none unless `use_sliding_window` is
  true, and then from layer `max_window_layers` on. `experts`: some layers have them.
  """
  norm_offset: float = 0.0
  scales_embeddings: bool = False
  gelu: bool = False
  qk_norm: bool = False
  post_norms: bool = False
  windows: Every | None = None
  windows_if_asked: bool = False
  experts: bool = False


@dataclass(frozen=True, slots=True)
class MlxLm:
  """What mlx-lm's model of a family wants or lacks.

  `called` is its file's name where that is another than the type's. `own_windows`: it knows the windows that `Line` describes.
  `lacks_windows`: it knows none, where the configuration has some for all layers. `lacks_partial_rotary`: it turns whole heads.
  `unread` are ends of names of tensors that it would leave out, `wrong` is what it computes otherwise than the family's authors:
  models with either are refused. `uncut` is why it has no stages. `gives_more`: its layers give other things behind the hidden state.
  `spares` are ends of names of tensors that it has and never computes with in layers that share keys and values. `stacks_experts`: it
  knows a layer's experts only as one tensor. `renames` are pairs of what is found in a tensor's name, as `re.sub` takes it, and of what
  it expects there. `factors`: it leaves out that tensors whose names end so are multiplied with these values of the configuration.
  `grouped_heads`: it spreads heads over an axis more before it masks. `transposed` are ends of names of stacked matrices that it expects
  the other way round.
  """
  called: str = ""
  own_windows: bool = False
  lacks_windows: bool = False
  lacks_partial_rotary: bool = False
  unread: tuple[str, ...] = ()
  wrong: str = ""
  uncut: str = ""
  gives_more: bool = False
  spares: tuple[str, ...] = ()
  stacks_experts: bool = False
  renames: tuple[tuple[str, str], ...] = ()
  factors: tuple[tuple[str, str], ...] = ()
  grouped_heads: bool = False
  transposed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Deviation:
  """What the library of an engine computes otherwise than a family's authors, in a sentence (`what`) and by a name that is kept.

  It counts from the position `since` on, or from the value of the first of `since_keys` that a model has. It is one of models alone
  whose values are all those of `where`. Keys are those of `config.json` and of GGUF's metadata, without the architecture before them.
  """
  name: str
  engine: str
  what: str
  since: int = 0
  since_keys: tuple[str, ...] = ()
  where: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
  """Models that are alike.

  `architectures` are GGUF's names of theirs; every cut of them has been compared with the whole. `types` are those of their language
  models in `config.json`, of which a GGUF file's tensors are read by their names in `config.json`'s world as the first, where there is a
  `line`. `converted_as` is the architecture that a converter gives them, if it is another family's. `writes_no_text` is why they
  are of no use here, "" where they are. `older_words` gives what newer configurations say otherwise, as engines expect it.
  `deviations` are what engines that run it have otherwise.
  """
  architectures: tuple[str, ...] = ()
  cut: Cut = Cut()
  writes_no_text: str = ""
  types: tuple[str, ...] = ()
  line: Line | None = None
  converted_as: str = ""
  mlx: MlxLm = MlxLm()
  older_words: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
  deviations: tuple[Deviation, ...] = ()
