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
from exo.inference.engine import Batch, BatchEntry, LoadOptions, StageMemory
from exo.inference.families.catalogue import line_of
from exo.inference.final_norm import FinalNorm
from exo.inference.kv_budget import KvBudget
from exo.inference.mlx.arguments import Rope, architecture, model_arguments, set_ropes
from exo.inference.mlx.cache import DecodeBatch
from exo.inference.mlx.library import model_classes, set_threads
from exo.inference.mlx.probe import QUANTIZE
from exo.inference.mlx.rehearsal import mask_axes, rehearse
from exo.inference.mlx.weights import holding, is_quantized, lay_out_for_cpu, load_weights, quantize, stage_parameters
from exo.inference.quantize import choose_quantize
from exo.inference.shard import Shard
from exo.inference.stage_base import StageBase
from exo.topology.weight_memory import STATES

if TYPE_CHECKING:
  from exo.inference.weights.checkpoint import Checkpoint

# columns of a decode batch that may be empty, as a share of those in use; below the second figure nobody cares
_MAX_PADDING, _FREE_PADDING = 0.5, 4096
_MOST_OF_STATES = 0.25  # of the memory beside the weights, for states that are there whatever a sequence's length


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


class MlxStage(StageBase):
  library = "mlx"

  def __init__(
      self, shard: Shard, checkpoint: Checkpoint, options: LoadOptions, progress: Callable[[float], None]
  ) -> None:
    config = checkpoint.config
    self._config, self._final_norm = config, FinalNorm(checkpoint)
    set_threads(options.threads)
    on_gpu = mx.default_device() == mx.gpu
    held = holding(checkpoint, shard.start_layer, on_gpu)
    self._dtype = held.dtype
    self._sequences: dict[int, _Sequence] = {}
    self._batches: dict[frozenset[int], list[DecodeBatch]] = {}
    if on_gpu and (limit := mx.device_info().get("max_recommended_working_set_size")):
      mx.set_wired_limit(int(limit))

    model = load_weights(_maker(checkpoint), checkpoint, shard, held, progress)
    bits = choose_quantize("mlx", QUANTIZE, options.quantize).bits
    if bits is not None and not is_quantized(checkpoint, shard.start_layer):
      quantize(model, shard, bits, held.packed)
    if not on_gpu:
      lay_out_for_cpu(model, shard)
    parameters = stage_parameters(model, shard)
    mx.eval(list(parameters.values()))
    self._ropes = tuple({id(module): module for module in model.modules() if isinstance(module, Rope)}.values())
    weight_bytes = sum(array.nbytes for array in parameters.values())
    self._model, self._abilities = rehearse(model, shard, config, held.dtype)
    mx.clear_cache()
    budget = KvBudget.of(shard, config, options, held.dtype.size, _MAX_PADDING)  # batches have empty columns, too
    state_bytes = shard.layer_count * config.state_elements * held.dtype.size
    sequences = options.max_sequences
    if state_bytes:
      most = int(_MOST_OF_STATES * budget.left_bytes(weight_bytes)) // state_bytes
      sequences = min(sequences, max(STATES, most))
    memory = StageMemory(
        weight_bytes,
        budget.most_token_bytes,
        budget.tokens(weight_bytes + sequences * state_bytes),
        sequences,
        budget.max_context,
        max_drafting=1 if self._model.is_plain else 0,
        near_context=config.near_context,
        working_bytes=sequences * state_bytes,
        indivisible=not self._model.is_plain
    )
    super().__init__(shard, memory, config.hidden_size, config.vocab_size)
    progress(1.0)

  # steps

  def step(self, batch: Batch) -> npt.NDArray[Any]:
    return self._computed(batch, self._run)

  def hidden_states(self, batch: Batch) -> npt.NDArray[np.float32]:
    if line_of(self._config.model_type) is None:
      raise UnsupportedModelError(f"models of type {self._config.model_type!r} give no embeddings on the mlx engine")
    return self._final_norm(self._computed(batch, self._last_hidden))

  def length(self, sequence: int) -> int:
    held = self._sequences.get(sequence)
    return held.length if held else 0

  def _check_usable(self, sequence: int) -> None:
    held = self._sequences.get(sequence)
    if held is not None and held.lost:
      raise EngineError("a step of this sequence failed: its cache must be dropped first")

  def _commit(self, entries: tuple[BatchEntry, ...]) -> None:
    for entry in entries:
      self._sequences[entry.sequence].length += entry.n_tokens

  def _give_up(self, entries: tuple[BatchEntry, ...]) -> None:
    for entry in entries:
      if (held := self._sequences.get(entry.sequence)) is not None:
        held.lost = True

  def _last_hidden(self, batch: Batch) -> npt.NDArray[Any]:
    ids, parts, start = mx.array(batch.token_ids), [], 0
    hidden = None if batch.hidden is None else self._to_mlx(batch.hidden)
    for entry in batch.entries:
      end = start + entry.n_tokens
      self._reach(entry.far)
      own = None if hidden is None else hidden[None, start:end]
      parts.append(self._model.last_hidden(ids[None, start:end], self._caches(entry.sequence), own)[0])
      start = end
    out = mx.concatenate(parts).astype(mx.float32)
    mx.eval(out)
    return _to_numpy(out)

  def _run(self, batch: Batch) -> npt.NDArray[Any]:
    ids = mx.array(batch.token_ids)
    hidden = None if batch.hidden is None else self._to_mlx(batch.hidden)
    outputs: dict[int, Any] = {}  # by entry, (rows, …)
    pending: list[Any] = []
    singles, start = [], 0
    for i, entry in enumerate(batch.entries):
      if self._abilities.batches and entry.n_tokens == 1 and entry.position > 0 and not entry.exact:
        singles.append((i, start))
      else:
        outputs[i] = self._run_one(entry, ids, hidden, start, pending)
      start += entry.n_tokens
    for far in (False, True):
      together = [(i, start) for i, start in singles if batch.entries[i].far == far]
      if len(together) == 1:
        (i, start), = together
        outputs[i] = self._run_one(batch.entries[i], ids, hidden, start, pending)
      elif together:
        self._reach(far)
        self._run_together(batch.entries, together, ids, hidden, outputs, pending)
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

  def _reach(self, far: bool) -> None:
    """Which sequences the model is called for next."""
    for rope in self._ropes:
      rope.far = far

  def _run_one(self, entry: BatchEntry, ids: Any, hidden: Any, start: int, pending: list[Any]) -> Any:
    """The entry's rows, still to be computed; None when it has none, and then its caches go to `pending`."""
    end = start + entry.n_tokens
    caches = self._caches(entry.sequence)
    self._reach(entry.far)
    rows = None
    if self.shard.is_last and self._abilities.chooses_rows and entry.logit_rows < entry.n_tokens:
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
    """One token each of several sequences, all near or all far; their rows go to `outputs` by the number of the entry."""
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
    batch = DecodeBatch(sequences, [self._caches(s) for s in sequences], mask_axes(self._config))
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

  def _copy(self, source: int, target: int, length: int) -> None:
    held = self._sequences[source]
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


def _maker(checkpoint: Checkpoint) -> Callable[[], Any]:
  """Makes models without weights. Raises `UnsupportedModelError` for what mlx-lm does not have."""
  model_class, argument_class = model_classes(architecture(checkpoint))
  arguments = model_arguments(checkpoint)

  def make_model() -> Any:
    try:
      model = model_class(argument_class.from_dict(arguments))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
      raise UnsupportedModelError(f"mlx-lm cannot make a model of this configuration: {error}") from error
    set_ropes(list(model.layers), checkpoint)
    return model

  return make_model


def _to_numpy(array: Any) -> npt.NDArray[Any]:
  """A copy; numpy knows bfloat16 only through ml_dtypes."""
  if array.dtype == mx.bfloat16:
    return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
  return np.array(array)
