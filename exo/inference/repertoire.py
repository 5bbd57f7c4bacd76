"""Which models' files an engine can run: one table for its probe, its constructor, and every node that plans with it."""

from __future__ import annotations

from dataclasses import dataclass

from exo.errors import UnsupportedModelError
from exo.inference.model_facts import ModelFacts
from exo.inference.weights.tensor import READABLE

_TOLD = 3


@dataclass(frozen=True, slots=True)
class Repertoire:
  """What an engine's code can run, whatever the machine.

  `text_models` are types of language models that it runs wherever they stand, `models` types of whole repositories, of which
  it finds the language model itself. `any_model`: it does not look. `reads_files`: its library reads a GGUF file itself,
  whatever is in it. Of a model in `text_models` an engine that has a tuple of
  `tensors`, `ropes` or `activations` knows these and no others; what it would not read would be missing in its numbers.
  `rotary_step`: it turns only multiples of so many numbers of a head.
  `containers` are the kinds of files that it reads, any where there are none, `encodings` those of weights. `uncut` are types
  of either kind that it runs as a whole only. `unread` are pairs of a type and of the end of a tensor's name: files of this
  type that hold such a tensor are packed as the engine's library does not know. `wrong` are pairs of a type and of what the library
  computes otherwise than the model's authors do.
  """
  text_models: tuple[str, ...] = ()
  models: tuple[str, ...] = ()
  any_model: bool = False
  reads_files: bool = False
  tensors: tuple[str, ...] = ()
  ropes: tuple[str, ...] = ()
  rotary_step: int = 1
  activations: tuple[str, ...] = ()
  containers: tuple[str, ...] = ()
  encodings: tuple[str, ...] = tuple(sorted(READABLE))
  uncut: tuple[str, ...] = ()
  unread: tuple[tuple[str, str], ...] = ()
  wrong: tuple[tuple[str, str], ...] = ()

  def type_of(self, facts: ModelFacts) -> str | None:
    """Under which of its types the engine runs a model; None where it has none."""
    if facts.model_type in self.text_models:
      return facts.model_type
    return facts.repository_type if facts.repository_type in self.models else None

  def types_of(self, facts: ModelFacts) -> set[str]:
    """Those by which something may be known of a model: the engine's, and that of the language model inside."""
    return {kind for kind in (self.type_of(facts), facts.model_type) if kind is not None}

  def can_cut(self, facts: ModelFacts) -> bool:
    """Whether a part of the model's layers is something that the engine can run."""
    if self.reads_files:
      return not facts.whole_only
    return not self.types_of(facts) & set(self.uncut) and (facts.container == "gguf" or not facts.whole_only)

  def cannot(self, facts: ModelFacts) -> str | None:
    """Why the engine cannot run a model, in words that follow its name; None where it can."""
    if facts.container and self.containers and facts.container not in self.containers:
      return f"reads no {facts.container} files: take the model as {' or '.join(self.containers)}"
    if self.any_model or (self.reads_files and facts.container):
      return None
    kind = self.type_of(facts)
    if kind is None:
      return f"has no model of type {facts.repository_type!r}"
    if facts.is_plain and not self.reads_files:
      return f"reads no gguf files of type {facts.model_type!r}: take the model as safetensors"
    if unread := facts.encodings.difference(self.encodings):
      called = f" ({facts.packing})" if facts.packing else ""
      return f"cannot read weights that are packed as {_some(unread)}{called}: take the model in another form"
    known = self.types_of(facts)
    if strange := frozenset(t for t in facts.tensors for of, end in self.unread if of in known and t.endswith(end)):
      return f"cannot read {_some(strange)} of a {kind}: take the model in another form"
    if wrong := next((what for of, what in self.wrong if of in known), ""):
      return f"computes a {kind} otherwise than its authors ({wrong}): take the model as gguf"
    return self._unknown(facts) if kind in self.text_models else None

  def _unknown(self, facts: ModelFacts) -> str | None:
    """What there is in a file of a type that the engine describes by itself, and that the engine knows nothing of."""
    if self.tensors and (unknown := facts.tensors.difference(self.tensors)):
      return f"has no place for {_some(unknown)} in a {facts.model_type}"
    if self.ropes and (unknown := facts.ropes.difference(self.ropes)):
      return f"does not know the rotary embedding {_some(unknown)}"
    if facts.rotary_dim % self.rotary_step:
      return f"cannot turn {facts.rotary_dim} numbers of a head, only multiples of {self.rotary_step}"
    if self.activations and facts.activation and facts.activation not in self.activations:
      return f"does not know the activation {facts.activation!r}"
    return None

  def check(self, engine: str, facts: ModelFacts) -> None:
    """Raises `UnsupportedModelError` for a model that the engine cannot run."""
    if (why := self.cannot(facts)) is not None:
      raise UnsupportedModelError(f"the {engine} engine {why}")


def _some(names: frozenset[str]) -> str:
  """A few of them, in one order on every node."""
  told = sorted(names)
  return ", ".join(told[:_TOLD]) + (" …" if len(told) > _TOLD else "")
