"""Tiny checkpoints of current families with reference log probabilities, and of each the forms in which it is published.

A few of them are in `test/data/families`, whose README says what they are; all are wherever `EXO_TEST_FAMILIES` says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from test.support.nodes import ROOT
from test.support.stages import Stages

TOLERANCE = 0.03
_FEW = ROOT / "test" / "data" / "families"
_CONFIGS = {"hub": "config.json", "v5": "config.v5.json"}
_FILES = _CONFIGS | {"gguf": "model.gguf"}


def families_folder() -> Path | None:
  """Where all checkpoints are; they are too large for the repository."""
  if (given := os.environ.get("EXO_TEST_FAMILIES")) is not None:
    return Path(given)
  return next((found for parent in ROOT.parents if (found := parent / "shared" / "families").is_dir()), None)


@dataclass(frozen=True)
class Form:
  """One family in one form: "hub" and "v5" are two ways in which the same configuration is written, "gguf" is a file."""
  family: str
  form: str
  folder: Path | None = None  # where its checkpoint lies, if not where the tests look

  def __str__(self) -> str:
    return f"{self.family}-{self.form}"

  def lay_out(self, folder: Path) -> Path:
    """A model's folder with this form alone."""
    made = folder / str(self)
    made.mkdir(parents=True)
    for file in self.source.iterdir():
      if (file.suffix == ".gguf") == (self.form == "gguf") and not file.name.startswith("config."):
        (made / file.name).symlink_to(file)
    if self.form in _CONFIGS:
      (made / "config.json").symlink_to(self.source / _CONFIGS[self.form])
    return made

  @property
  def source(self) -> Path:
    file, places = _FILES[self.form], (_FEW, families_folder()) if self.folder is None else (self.folder, )
    return next(of / self.family for of in places if of is not None and (of / self.family / file).is_file())

  def references(self) -> Iterator[tuple[list[int], np.ndarray]]:
    """Token ids and the log probabilities of all but the first."""
    found = json.loads((self.source / "ref.json").read_text())
    for ids, expected in zip(found["tokens"], found["logprobs"], strict=True):
      yield ids, np.array(expected)


def few_forms() -> list[Form]:
  """Those that are in the repository."""
  return _forms(_FEW)


def all_forms() -> list[Form]:
  """Of every family that is on this machine."""
  return sorted({*few_forms(), *_forms(families_folder())}, key=str)


def forms_in(folder: Path) -> list[Form]:
  """Of the checkpoints in a folder, which the tests need not know."""
  return [Form(form.family, form.form, folder) for form in _forms(folder)]


def _forms(folder: Path | None) -> list[Form]:
  found = [] if folder is None else sorted(path for path in folder.iterdir() if path.is_dir())
  return [Form(path.name, form) for path in found for form, file in _FILES.items() if (path / file).is_file()]


def log_probabilities(stages: Stages, ids: Sequence[int], chunk: int | None = None) -> np.ndarray:
  """Of all tokens but the first, given what stands before; the prompt in one step, or in some of `chunk` tokens."""
  chunk = chunk or len(ids)
  far = (1, ) if 0 < stages.near_context < len(ids) else ()
  rows = [  # an engine may give the same array each time
      stages.step([(1, start, ids[start:start + chunk])], far=far).copy() for start in range(0, len(ids), chunk)
  ]
  stages.each("drop", 1)
  return of_tokens(np.concatenate(rows), ids)


def of_tokens(logits: np.ndarray, ids: Sequence[int]) -> np.ndarray:
  """From the logits of all tokens to the log probabilities of all but the first."""
  logits = logits.astype(np.float64)[:-1]
  logits -= logits.max(axis=-1, keepdims=True)
  logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  return np.asarray(logits[np.arange(len(ids) - 1), list(ids[1:])])


def error(stages: Stages, form: Form) -> float:
  """The greatest difference from the family's references."""
  worst = 0.0
  for ids, expected in form.references():
    for chunk in (None, max(2, len(ids) // 3)):
      difference = np.abs(log_probabilities(stages, ids, chunk) - expected).max()
      worst = max(worst, float(difference)) if np.isfinite(difference) else float("inf")
  return worst
