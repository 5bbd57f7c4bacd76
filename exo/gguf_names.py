"""Names of GGUF files, of which several can be one model: NAME-00001-of-00005.gguf and so on, as llama.cpp's `gguf-split` writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".gguf"
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
_QUANTIZATION = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d_[A-Z0-9]+(?:_[A-Z]+)?|TQ\d_\d|BF16|F16|F32|MXFP4(?:_MOE)?))$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class PartName:
  """Number `number`, from 1 to `count`, of the files that are `stem`."""
  stem: str
  number: int
  count: int
  suffix: str = SUFFIX

  def __str__(self) -> str:
    return f"{self.stem}-{self.number:05d}-of-{self.count:05d}{self.suffix}"

  def all(self) -> list[str]:
    return [str(PartName(self.stem, number, self.count, self.suffix)) for number in range(1, self.count + 1)]


def is_gguf(name: str) -> bool:
  return name.lower().endswith(SUFFIX)


def is_weights_of_text(name: str) -> bool:
  """Whether a GGUF file of this name is a language model: pictures' encoders lie beside those, and what macOS leaves on other systems' disks."""
  last = name.rpartition("/")[2]
  return is_gguf(name) and "mmproj" not in last.lower() and not last.startswith("._")


def part_name(name: str) -> PartName | None:
  """None for a file that is a model by itself."""
  found = _PART.fullmatch(name)
  if found is None or not 1 <= int(found[2]) <= int(found[3]):
    return None
  return PartName(found[1], int(found[2]), int(found[3]), found[4])


def parts_of(path: Path) -> list[Path]:
  """All files of the model that this one belongs to, in their order, whether they are there or not."""
  part = part_name(path.name)
  return [path] if part is None else [path.with_name(name) for name in part.all()]


def model_stem(name: str) -> str:
  """A GGUF file's name without what says that it is one, or a part."""
  part = part_name(name)
  return part.stem if part is not None else name[:-len(SUFFIX)]


def quantization_of(name: str) -> str:
  """How a GGUF file's weights are packed, as its name says; "" where it does not."""
  found = _QUANTIZATION.search(model_stem(name.rpartition("/")[2])) if is_gguf(name) else None
  return found[1].upper() if found is not None else ""


def is_of_quantization(name: str, wanted: str) -> bool:
  """Whether a file's name, folders included, names this quantization."""
  return re.search(rf"(^|[-._/]){re.escape(wanted)}($|[-._/])", name, re.IGNORECASE) is not None
