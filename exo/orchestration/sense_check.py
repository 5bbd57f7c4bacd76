"""Whether a model makes anything of plain English: of one whose weights are random or broken its users are warned.

It is asked for the likelihood of a sentence, as a client would ask, once for each file: when nobody has wanted the ring for a
while after an answer. What came of it is kept on disk.
"""

from __future__ import annotations

import asyncio
import json
import math
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from exo.errors import ExoError, in_words
from exo.inference.sampling import SamplingParams
from exo.log import log
from exo.oldest import forget_oldest
from exo.orchestration.generation import Generation, GenerationSpec
from exo.orchestration.model_catalog import ModelInfo
from exo.private_files import write_private
from exo.tasks import TaskOwner
from exo.worker.quiet import quiet

SENTENCE = (
    "The children walked home from school in the rain, and their mother made them a cup of hot tea before dinner, "
    "because they were cold and hungry."
)
LEAST_GAIN = 0.5  # nats a token more than chance gives
_FEWEST_KINDS = 8  # of tokens: a vocabulary that knows hardly a word of it says nothing of the weights
_QUIET_S = 10.0
_TRIES = 2
_FILE, _MOST_BYTES, _MOST_KEPT = "sense.json", 2**20, 2000

Generate = Callable[[GenerationSpec, ModelInfo], AbstractAsyncContextManager[Generation]]


def gains_kept(state_dir: Path) -> dict[str, float]:
  """What is known of files by their keys: by how many nats a token the sentence is likelier than by chance. Blocks; of what somebody else
  may have written there, what is plausible."""
  try:
    if (state_dir / _FILE).stat().st_size > _MOST_BYTES:
      return {}
    read = json.loads((state_dir / _FILE).read_text("utf-8"))
    return {str(key): float(gain) for key, gain in read.items() if _is_plausible(gain)}
  except (OSError, ValueError, TypeError, AttributeError, RecursionError):
    return {}


def warnings_of(gains: Mapping[str, float]) -> dict[str, str]:
  """Of those files of which there is something to say."""
  return {key: told for key, gain in gains.items() if (told := warning_of(gain))}


def _is_plausible(gain: Any) -> bool:
  return isinstance(gain, float) and math.isfinite(gain)


def warning_of(gain: float) -> str:
  """"" where nothing is wrong."""
  if gain >= LEAST_GAIN:
    return ""
  than = f"{gain:.2f} nats a token likelier" if gain > 0 else f"{-gain:.2f} nats a token less likely"
  return f"plain English is {than} to it than by chance: its weights are random or broken, and so will be its answers"


class SenseChecks:
  """`generate` runs a request, `is_open` says whether a plan of a model is, and `busy` whether anybody wants the ring."""
  def __init__(
      self, state_dir: Path, generate: Generate, is_open: Callable[[str], bool], busy: Callable[[], bool],
      tasks: TaskOwner
  ) -> None:
    self._state_dir, self._generate, self._is_open, self._busy, self._tasks = state_dir, generate, is_open, busy, tasks
    self._gains: dict[str, float] = {}
    self._tries: dict[str, int] = {}
    self._told: set[str] = set()
    self._under_way: set[str] = set()
    self._lock = asyncio.Lock()

  async def recall(self) -> None:
    """What was found out before this node started."""
    self._gains = await asyncio.to_thread(gains_kept, self._state_dir)

  def warnings(self) -> Mapping[str, str]:
    """By the keys of models' files."""
    return warnings_of(self._gains)

  def answered(self, model: ModelInfo) -> None:
    """A request for it has been answered: it may be looked at as soon as nobody wants anything."""
    key = model.fingerprint
    if key in self._gains:
      self._tell(model, key)
    elif model.file.size and key not in self._under_way and self._tries.get(key, 0) < _TRIES:
      self._under_way.add(key)
      self._tasks.spawn(self._look(model), f"whether {model.id} makes sense")

  def _tell(self, model: ModelInfo, key: str) -> None:
    """Once, as long as this node lives."""
    if key not in self._told and (told := warning_of(self._gains[key])):
      self._told.add(key)
      log(0, "%s: %s", model.id, told)

  async def _look(self, model: ModelInfo) -> None:
    key = model.fingerprint
    try:
      gain = (await asyncio.to_thread(gains_kept, self._state_dir)).get(key)
      if gain is None:
        gain = await self._found(model)
      if gain is None:
        return
      self._gains[key] = gain
      forget_oldest(self._gains, _MOST_KEPT)
      self._tell(model, key)
    except (ExoError, OSError) as error:
      self._give_up(key, 1)
      log(2, "whether %s makes sense was not found out: %s", model.id, in_words(error))
    finally:
      self._under_way.discard(key)

  def _give_up(self, key: str, tries: int) -> None:
    self._tries[key] = self._tries.get(key, 0) + tries
    forget_oldest(self._tries, _MOST_KEPT)

  async def _found(self, model: ModelInfo) -> float | None:
    """None where there is nothing to ask, or nobody has it loaded any more. Raises `ExoError`, OSError."""
    async with self._lock:
      encoded = await asyncio.to_thread(model.tokenizer.encode, SENTENCE, add_bos=True)
      ids = [i for i in encoded if i < model.n_words]  # some tokenizers know more words than the model
      if len(set(ids)) < _FEWEST_KINDS or len(ids) >= model.max_context:
        self._give_up(model.fingerprint, _TRIES)
        return None
      await quiet(self._busy, _QUIET_S)
      if not self._is_open(model.id):
        return None
      spec = GenerationSpec(
          uuid.uuid4().hex, tuple(ids), 1, frozenset(), SamplingParams(temperature=0), prompt_logprobs=0, exact=False
      )
      found: list[float] = []
      async with self._generate(spec, model) as generation:
        async for delivery in generation:
          found += [token.logprob for token in delivery.prompt_logprobs]
      if len(found) != len(ids) - 1:
        return None
      gain = sum(found) / len(found) + math.log(model.n_words)
      await asyncio.to_thread(self._keep, model.fingerprint, gain)
      return gain

  def _keep(self, key: str, gain: float) -> None:
    known = gains_kept(self._state_dir)
    known.pop(key, None)
    forget_oldest(known, _MOST_KEPT - 1)
    write_private(self._state_dir / _FILE, json.dumps(known | {key: gain}))
