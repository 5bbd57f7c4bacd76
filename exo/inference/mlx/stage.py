"""A loaded shard on MLX.

Sequences that decode together run as one batch whose caches lie side by side (`DecodeBatch`) as long as the same ones
come together; everything longer runs by itself. All of a step's results are computed at once, at its end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import mlx.core as mx
import numpy as np
import numpy.typing as npt

from exo.errors import CacheReuseError, EngineError, UnsupportedModelError
from exo.inference.engine import (
    Batch,
    BatchEntry,
    LoadOptions,
    StageMemory,
    StageModel,
    check_inputs,
    engine_error,
)
from exo.inference.final_norm import FinalNorm
from exo.inference.mlx.arguments import architecture, ignored_windows, model_arguments, set_ropes
from exo.inference.mlx.cache import DecodeBatch, KvCache
from exo.inference.mlx.library import model_classes, set_threads
from exo.inference.mlx.probe import DESCRIBED
from exo.inference.mlx.sliced_model import SlicedModel
from exo.inference.mlx.weights import holding, is_quantized, lay_out_for_cpu, load_weights, quantize, stage_parameters
from exo.inference.shard import Shard

if TYPE_CHECKING:
  from exo.inference.weights.checkpoint import Checkpoint

# columns of a decode batch that may be empty, as a share of those in use; below the second figure nobody cares
_MAX_PADDING, _FREE_PADDING = 0.5, 4096
# these spread heads over an axis more before they mask
_FIVE_AXES = frozenset({"gemma2", "phi3small"})
_REHEARSAL = (2, 3, 5)
_REHEARSAL_ERROR = 0.05


class _Sequence:
  """`caches` by layer, None while they are part of `batch`; `lost` after a step that raised in the middle.

  Which of a step's updates have happened cannot be told then: arrays are changed where they lie, some layers' before
  the failure and some not, and a copy to go back to would double what every token costs.
  """
  __slots__ = ("batch", "caches", "length", "lost")

  def __init__(self, caches: list[Any]) -> None:
    self.caches: list[Any] | None = caches
    self.batch: DecodeBatch | None = None
    self.length = 0
    self.lost = False


class MlxStage(StageModel):
  def __init__(
      self, shard: Shard, checkpoint: Checkpoint, options: LoadOptions, progress: Callable[[float], None]
  ) -> None:
    config = checkpoint.config
    self.shard, self._config = shard, config
    self._final_norm = FinalNorm(checkpoint)
    set_threads(options.threads)
    on_gpu = mx.default_device() == mx.gpu
    held = holding(checkpoint, shard.start_layer, on_gpu)
    self._dtype = held.dtype
    self._sequences: dict[int, _Sequence] = {}
    self._batches: dict[frozenset[int], list[DecodeBatch]] = {}
    if on_gpu and (limit := mx.device_info().get("max_recommended_working_set_size")):
      mx.set_wired_limit(int(limit))

    model_class, argument_class = model_classes(architecture(checkpoint))
    arguments = model_arguments(checkpoint)

    def make_model() -> Any:
      try:
        model = model_class(argument_class.from_dict(arguments))
      except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UnsupportedModelError(f"mlx-lm cannot make a model of this configuration: {error}") from error
      set_ropes(list(model.layers), config)
      return model

    bits = int(options.quantize
               ) if options.quantize in ("4", "8") and not is_quantized(checkpoint, shard.start_layer) else None
    whole = shard.is_first and shard.is_last
    for every_other in ((True, ) if whole else (False, True)):
      model = load_weights(make_model, checkpoint, shard, held, every_other, progress)
      if bits is not None:
        quantize(model, shard, bits, every_other, held.packed)
      if not on_gpu:
        lay_out_for_cpu(model, shard, every_other)
      parameters = stage_parameters(model, shard, every_other)
      mx.eval(list(parameters.values()))
      self._weight_bytes = sum(array.nbytes for array in parameters.values())
      if self._rehearse(model, whole):
        break
    else:
      raise self._cannot_cut("a stage needs what only other stages have")
    mx.clear_cache()
    self._memory = self._plan_memory(options, checkpoint)
    progress(1.0)

  def _cannot_cut(self, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the mlx engine cannot cut models of type {self._config.model_type!r} into stages ({why}): "
        "run it on one node, or on another engine"
    )

  def _plan_memory(self, options: LoadOptions, checkpoint: Checkpoint) -> StageMemory:
    per_token = self.shard.layer_count * self._config.kv_elements_per_token * self._dtype.size
    budget = max(0, options.memory_bytes - self._weight_bytes)
    if options.kv_memory_bytes is not None:
      budget = min(budget, options.kv_memory_bytes)
    context = min(self._config.max_context, options.max_context or self._config.max_context)
    tokens = int(budget / (1 + _MAX_PADDING)) // per_token  # the empty columns of batches take memory too
    drafting = 1 if self._model.is_plain else 0
    return StageMemory(self._weight_bytes, per_token, tokens, options.max_sequences, context, drafting)

  # a first run

  def _rehearse(self, model: Any, whole: bool) -> bool:
    """Run a few tokens to find out what this architecture can do; False when weights were missing.

    It shows whether the stage depends on anything that it does not have (that is NaN), whether the head can be computed
    for chosen tokens alone, and whether sequences of unequal lengths can be decoded as one batch.
    """
    self._can_choose, self._can_batch = True, False
    try:
      array_masks = self._config.model_type in _FIVE_AXES
      self._model = SlicedModel(model, self.shard, ignored_windows(self._config), array_masks)
      caches = [self._model.make_caches() for _ in _REHEARSAL]
      prompts = [self._rehearsal_run([own], n, None) for own, n in zip(caches, _REHEARSAL, strict=True)]
      mx.eval(prompts)
      if self.shard.is_last:
        self._can_choose = self._chooses_rows()
      elif any(prompt.shape != (1, n, self._config.hidden_size) for prompt, n in zip(prompts, _REHEARSAL, strict=True)):
        raise self._cannot_cut(f"its hidden state has the shape {prompts[0].shape}")
      if not whole and any(mx.isnan(prompt).any().item() for prompt in prompts):
        return False
    except UnsupportedModelError as error:
      raise error if "engine" in error.message else self._cannot_cut(error.message) from error
    except Exception as error:
      if whole:
        raise EngineError(f"mlx: {type(error).__name__}: {error}") from error
      raise self._cannot_cut(f"{type(error).__name__}: {error}") from error
    self._can_batch = self._model.is_plain and self._batches_agree(caches)
    return True

  def _rehearsal_run(self, caches: Sequence[Any], n: int, rows: Any) -> Any:
    """`n` made-up tokens for each sequence: one by itself with its caches, or the rows of a batch's."""
    batch = 1 if len(caches) == 1 else len(_REHEARSAL)
    ids = mx.arange(batch * n).reshape(batch, n) % self._config.vocab_size
    hidden = None
    if not self.shard.is_first:
      hidden = mx.random.normal((batch, n, self._config.hidden_size), key=mx.random.key(n)).astype(self._dtype)
    return self._model(ids, caches[0] if len(caches) == 1 else caches, hidden, rows)

  def _chooses_rows(self) -> bool:
    every = self._rehearsal_run([self._model.make_caches()], 4, None)
    try:
      last = self._rehearsal_run([self._model.make_caches()], 4, mx.array([3]))
      return last.shape == (1, 1, every.shape[-1]) and _near(last, every[:, 3:])
    except Exception:  # noqa: BLE001 - whatever it is, this model wants all its tokens
      return False

  def _batches_agree(self, caches: list[list[KvCache]]) -> bool:
    """Whether one more token each gives together what it gives alone."""
    ids = mx.arange(len(caches)).reshape(-1, 1)
    hidden = None
    if not self.shard.is_first:
      shape = (len(caches), 1, self._config.hidden_size)
      hidden = mx.random.normal(shape, key=mx.random.key(7)).astype(self._dtype)
    alone = [
        self._model(
            ids[i:i + 1], [layer.copied(layer.offset)
                           for layer in own], None if hidden is None else hidden[i:i + 1], None
        ) for i, own in enumerate(caches)
    ]
    try:
      batch = DecodeBatch(range(len(caches)), caches, self._mask_axes)
      together = self._model(ids, batch.layers, hidden, None)
      return bool(together.shape[0] == len(caches)) and _near(together, mx.concatenate(alone))
    except Exception:  # noqa: BLE001 - whatever it is, this model runs its sequences one by one
      return False

  @property
  def _mask_axes(self) -> int:
    return 5 if self._config.model_type in _FIVE_AXES else 4

  # steps

  @property
  def memory(self) -> StageMemory:
    return self._memory

  def step(self, batch: Batch) -> npt.NDArray[Any]:
    return self._computed(batch, self._run)

  def hidden_states(self, batch: Batch) -> npt.NDArray[np.float32]:
    if self._config.model_type not in DESCRIBED:
      raise UnsupportedModelError(f"models of type {self._config.model_type!r} give no embeddings on the mlx engine")
    return self._final_norm(self._computed(batch, self._last_hidden))

  def _computed(self, batch: Batch, run: Callable[[Batch], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    self._check(batch)
    try:
      out = run(batch)
    except BaseException as error:
      for entry in batch.entries:
        if (held := self._sequences.get(entry.sequence)) is not None:
          held.lost = True
      if isinstance(error, Exception):
        raise engine_error("mlx", error) from error
      raise
    for entry in batch.entries:
      self._sequences[entry.sequence].length += entry.n_tokens
    return out

  def _last_hidden(self, batch: Batch) -> npt.NDArray[Any]:
    ids, parts, start = mx.array(batch.token_ids), [], 0
    hidden = None if batch.hidden is None else self._to_mlx(batch.hidden)
    for entry in batch.entries:
      end = start + entry.n_tokens
      own = None if hidden is None else hidden[None, start:end]
      parts.append(self._model.last_hidden(ids[None, start:end], self._caches(entry.sequence), own)[0])
      start = end
    out = mx.concatenate(parts).astype(mx.float32)
    mx.eval(out)
    return _to_numpy(out)

  def _check(self, batch: Batch) -> None:
    check_inputs(batch, self.shard.is_first, self._config.hidden_size, self._config.vocab_size)
    for entry in batch.entries:
      sequence = self._sequences.get(entry.sequence)
      if sequence is not None and sequence.lost:
        raise EngineError("a step of this sequence failed: its cache must be dropped first")
      held = sequence.length if sequence else 0
      if entry.position != held:
        raise EngineError(f"entry at position {entry.position} of a sequence whose cache holds {held} tokens")
      if entry.position + entry.n_tokens > self._memory.max_context:
        raise EngineError(f"a sequence is longer than {self._memory.max_context} tokens")

  def _run(self, batch: Batch) -> npt.NDArray[Any]:
    ids = mx.array(batch.token_ids)
    hidden = None if batch.hidden is None else self._to_mlx(batch.hidden)
    outputs: dict[int, Any] = {}  # by entry, (rows, …)
    pending: list[Any] = []
    singles, start = [], 0
    for i, entry in enumerate(batch.entries):
      if self._can_batch and entry.n_tokens == 1 and entry.position > 0:
        singles.append((i, start))
      else:
        outputs[i] = self._run_one(entry, ids, hidden, start, pending)
      start += entry.n_tokens
    if len(singles) == 1:
      (i, start), = singles
      outputs[i] = self._run_one(batch.entries[i], ids, hidden, start, pending)
    elif singles:
      self._run_together(batch.entries, singles, ids, hidden, outputs, pending)
    parts = [outputs[i] for i in range(len(batch.entries)) if outputs[i] is not None]
    out = parts[0] if len(parts) == 1 else mx.concatenate(parts) if parts else None
    if out is not None and self.shard.is_last:
      out = out.astype(mx.float32)
    mx.eval(out, pending)
    for group in {id(b): b for i, _ in singles if (b := self._sequences[batch.entries[i].sequence].batch)}.values():
      group.advance()
    if out is None:
      return np.zeros((0, self._config.vocab_size), np.float32)
    return _to_numpy(out)

  def _run_one(self, entry: BatchEntry, ids: Any, hidden: Any, start: int, pending: list[Any]) -> Any:
    """The entry's rows, still to be computed; None when it has none, and then its caches go to `pending`."""
    end = start + entry.n_tokens
    caches = self._caches(entry.sequence)
    rows = None
    if self.shard.is_last and self._can_choose and entry.logit_rows < entry.n_tokens:
      rows = mx.arange(entry.n_tokens - max(1, entry.logit_rows), entry.n_tokens)
    out = self._model(ids[None, start:end], caches, None if hidden is None else hidden[None, start:end], rows)[0]
    if not self.shard.is_last:
      return out
    if entry.logit_rows == 0:
      pending.extend(cache.state for cache in caches)
      return None
    return out[-entry.logit_rows:]

  def _run_together(
      self, entries: Sequence[BatchEntry], singles: list[tuple[int, int]], ids: Any, hidden: Any,
      outputs: dict[int, Any], pending: list[Any]
  ) -> None:
    """One token each of several sequences; their rows go to `outputs` by the number of the entry."""
    place = {entries[i].sequence: (i, start) for i, start in singles}
    for group in self._groups(list(place)):
      if isinstance(group, int):
        i, start = place[group]
        outputs[i] = self._run_one(entries[i], ids, hidden, start, pending)
        continue
      at = mx.array([place[sequence][1] for sequence in group.sequences])
      out = self._model(ids[at][:, None], group.layers, None if hidden is None else hidden[at][:, None], None)[:, 0]
      wanted = False
      for row, sequence in enumerate(group.sequences):
        i, _ = place[sequence]
        use = not self.shard.is_last or entries[i].logit_rows > 0
        outputs[i] = out[row:row + 1] if use else None
        wanted |= use
      if not wanted:
        pending.append(out)

  def _groups(self, sequences: list[int]) -> list[DecodeBatch | int]:
    """The sequences as batches in which few columns are empty; a number stands for one that runs alone."""
    key = frozenset(sequences)
    known = self._batches.get(key)
    if known is None:
      for sequence in sequences:
        self._leave_batch(sequence)
      groups: list[list[int]] = []
      for sequence in sorted(sequences, key=lambda s: -self._sequences[s].length):
        group = [*groups[-1], sequence] if groups else [sequence]
        used = sum(self._sequences[s].length for s in group)
        padding = len(group) * self._sequences[group[0]].length - used
        if groups and padding <= max(_MAX_PADDING * used, _FREE_PADDING):
          groups[-1] = group
        else:
          groups.append([sequence])
      self._batches[key] = known = [self._join(group) for group in groups if len(group) > 1]
    inside = {sequence for batch in known for sequence in batch.sequences}
    return [*known, *(sequence for sequence in sequences if sequence not in inside)]

  def _join(self, sequences: list[int]) -> DecodeBatch:
    batch = DecodeBatch(sequences, [self._caches(s) for s in sequences], self._mask_axes)
    for sequence in sequences:
      held = self._sequences[sequence]
      held.batch, held.caches = batch, None
    return batch

  def _leave_batch(self, sequence: int) -> None:
    """Give the sequences of this one's batch their own caches back."""
    batch = self._sequences[sequence].batch
    if batch is None:
      return
    for member, caches in zip(batch.sequences, batch.split(), strict=True):
      if member in self._sequences and self._sequences[member].batch is batch:
        self._sequences[member].caches, self._sequences[member].batch = list(caches), None
    self._batches = {key: groups for key, groups in self._batches.items() if batch not in groups}

  def _caches(self, sequence: int) -> list[Any]:
    """The sequence's own caches, new ones for a new sequence."""
    if sequence not in self._sequences:
      self._sequences[sequence] = _Sequence(self._model.make_caches())
    self._leave_batch(sequence)
    caches = self._sequences[sequence].caches
    assert caches is not None
    return caches

  # sequences

  def drop(self, sequence: int) -> None:
    held = self._sequences.pop(sequence, None)
    if held is not None and held.batch is not None:  # a new sequence of this number has nothing in there
      self._batches = {key: groups for key, groups in self._batches.items() if held.batch not in groups}

  def truncate(self, sequence: int, length: int) -> None:
    held = self._sequences.get(sequence)
    if held is None:
      return
    if length == 0:
      self.drop(sequence)
      return
    self._check_intact(held)
    if length >= held.length:
      return
    self._check_can_shorten()
    for cache in self._caches(sequence):
      cache.truncate(length)
    held.length = length

  def copy(self, source: int, target: int, length: int) -> None:
    held = self._sequences.get(source)
    if held is None or held.length < length:
      raise CacheReuseError(f"{0 if held is None else held.length} tokens are kept where {length} are wanted")
    self._check_intact(held)
    caches = self._caches(source)
    if length < held.length:
      self._check_can_shorten()
    plain = self._model.is_plain
    twin = _Sequence([cache.copied(length) if plain else copy.deepcopy(cache) for cache in caches])
    twin.length = min(length, held.length)
    self._sequences[target] = twin

  @staticmethod
  def _check_intact(held: _Sequence) -> None:
    if held.lost:
      raise CacheReuseError("a step of this sequence failed in the mlx engine: what its cache holds cannot be told")

  def _check_can_shorten(self) -> None:
    if not self._model.is_plain:
      raise CacheReuseError(
          f"the mlx engine cannot shorten the cache of a {self._config.model_type} model: its layers keep a running "
          "state, not every token"
      )

  def close(self) -> None:
    self._sequences.clear()
    self._batches.clear()
    del self._model
    mx.clear_cache()

  def _to_mlx(self, hidden: npt.NDArray[Any]) -> Any:
    if hidden.dtype == ml_dtypes.bfloat16:
      array = mx.array(hidden.view(np.uint16)).view(mx.bfloat16)
    else:
      array = mx.array(hidden)
    return array if array.dtype == self._dtype else array.astype(self._dtype)


def _to_numpy(array: Any) -> npt.NDArray[Any]:
  """A copy; numpy knows bfloat16 only through ml_dtypes."""
  if array.dtype == mx.bfloat16:
    return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
  return np.array(array)


def _near(a: Any, b: Any) -> bool:
  """Equal but for rounding, which other shapes do otherwise."""
  a, b = a.astype(mx.float32), b.astype(mx.float32)
  return bool((mx.linalg.norm(a - b) <= _REHEARSAL_ERROR * mx.linalg.norm(b)).item())
