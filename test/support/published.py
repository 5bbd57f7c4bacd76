"""Repositories of registered models as their makers lay them out, with tiny files: what a hub's double shows for a name."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from exo.gguf_names import PartName
from exo.model_card import HubSource, ModelCard
from test.support.families import Form, families_folder
from test.support.nodes import ROOT
from test.support.shaped_models import Shape, write_shaped

_LLAMA = ROOT / "test" / "data" / "goldens" / "llama"
_TINY = Shape(2, 256, 512, 4, 2, 600, 1024)
_N_PARTS = 3
_MOST_IN_A_FILE = 48e9
# the tiny checkpoints that are published in the same form as models of a type, where they are not called after it
_FAMILIES = {"gemma4": "gemma4_e4b", "gpt_oss": "gpt_oss_mxfp4", "phi3": "phi4"}


def family_of(card: ModelCard) -> str:
  """"" where none is here."""
  folder = families_folder()
  assert card.kind is not None
  kind = "ministral3" if card.kind.text_type == "ministral3" else card.kind.model_type
  family = _FAMILIES.get(kind, kind)
  return family if folder is not None and (folder / family).is_dir() else ""


class Published:
  """Lays repositories out below `folder`."""
  def __init__(self, folder: Path) -> None:
    self._folder = folder
    one, parts = folder / "tiny" / "tiny.gguf", folder / "parts" / "tiny.gguf"
    self._one = write_shaped(one, _TINY, "Q8_0")
    write_shaped(parts, _TINY, "Q8_0", per_part=8)
    self._parts = sorted(parts.parent.iterdir())
    assert len(self._parts) == _N_PARTS

  def repos(self, card: ModelCard) -> dict[str, Path]:
    """What there is of a model on the hub."""
    return {source.repo: self._laid_out(card, name, source) for name, source in card.repos.items()}

  def _laid_out(self, card: ModelCard, name: str, source: HubSource) -> Path:
    made = self._folder / source.folder
    if made.exists():
      return made
    made.mkdir()
    if name == "gguf":
      self._ggufs(made, card, source)
      return made
    family = family_of(card)
    files = _LLAMA if not family else _laid_out(family, self._folder / "forms")
    for file in files.iterdir():
      (made / file.name).symlink_to(file.resolve())
    (made / "README.md").write_text("# A model")
    return made

  def _ggufs(self, made: Path, card: ModelCard, source: HubSource) -> None:
    maker, _, repo = source.repo.partition("/")
    stem = repo.removesuffix("-GGUF")
    for packing in card.quantizations:
      form = card.taken_as("gguf" if packing == card.packings.get("gguf") else packing)
      assert form is not None and form.total_bytes is not None
      if form.total_bytes <= _MOST_IN_A_FILE:
        (made / f"{stem}-{packing}.gguf").symlink_to(self._gguf(card))
        continue
      inner = {"bartowski": f"{stem}-{packing}", "ggml-org": ""}.get(maker, packing)
      (made / inner).mkdir(exist_ok=True)
      for i, part in enumerate(self._parts, 1):
        name = PartName(f"{stem}-{packing.lower() if not inner else packing}", i, _N_PARTS)
        (made / inner / str(name)).symlink_to(part)
    (made / "mmproj-F16.gguf").write_bytes(b"GGUF" + bytes(100))
    (made / "config.json").write_text("{}")  # some have one beside their files

  def _gguf(self, card: ModelCard) -> Path:
    family = family_of(card)
    folder = families_folder()
    found = None if folder is None or not family else folder / family / "model.gguf"
    return found if found is not None and found.is_file() else self._one


@cache
def _laid_out(family: str, folder: Path) -> Path:
  return Form(family, "hub").lay_out(folder)
