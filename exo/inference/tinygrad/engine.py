"""The tinygrad engine: own kernels, compiled by tinygrad for whatever it drives, called in the same order every step.

Every token of a step is a row, so prompts and decodes mix freely. Kernels are compiled when a shard is loaded and never
again: rows, positions and lengths are symbolic or data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from exo.inference.embedding_table import EmbeddingTable
from exo.inference.engine import Batch, BatchEntry, InferenceEngine, LoadOptions, StageMemory, gather_logit_rows
from exo.inference.exactness import Exactness
from exo.inference.final_norm import FinalNorm
from exo.inference.kv_budget import KvBudget
from exo.inference.quantize import choose_quantize
from exo.inference.rope import attention_factor, inverse_frequencies
from exo.inference.shard import Shard
from exo.inference.stage_base import StageBase, engine_error
from exo.inference.tinygrad.decoder import Decoder, run, tile_of
from exo.inference.tinygrad.device import ComputeDevice
from exo.inference.tinygrad.kernels import MAX_ROWS, PAGE
from exo.inference.tinygrad.kv_pages import KvPages
from exo.inference.tinygrad.probe import QUANTIZE, devices
from exo.inference.weights.stage_tensors import StageTensors
from exo.inference.whole_blocks import blocks_for

if TYPE_CHECKING:
  from exo.inference.weights.checkpoint import Checkpoint

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
_MAX_DRAFTING = 8  # sequences of one step; their rows are computed as one matrix
_GPU_KV_TOKENS = 16384


class TinygradStage(StageBase):
  library = "tinygrad"

  def __init__(
      self, shard: Shard, checkpoint: Checkpoint, options: LoadOptions, progress: Callable[[float], None]
  ) -> None:
    config, tensors = checkpoint.config, StageTensors(checkpoint, shard)
    self._config = config
    budget = KvBudget.of(shard, config, options, np.dtype(np.float32).itemsize)
    context = budget.max_context
    bits = choose_quantize("tinygrad", QUANTIZE, options.quantize).bits
    self._device = ComputeDevice(devices(options.device), options.library_debug)
    self._decoder = Decoder(self._device, shard, tensors, context, options.max_sequences, bits)
    self._decoder.load(lambda fraction: progress(fraction / 2))
    at_once = not self._device.on_cpu  # where a CPU's memory is taken page by page
    tokens = budget.tokens(self._device.weight_bytes, at_once)
    if at_once:
      tokens = min(tokens, max(context, _GPU_KV_TOKENS))
    # a sequence's last page is partly empty
    self._kv = KvPages(tokens // PAGE + options.max_sequences, options.max_sequences, self._device.on_cpu)
    self._decoder.bind(self._kv.total, lambda fraction: progress(0.5 + fraction / 2))
    self._embedding = EmbeddingTable(tensors) if shard.is_first else None
    n_words = config.vocab_size if self._embedding is None else self._embedding.n_words
    memory = StageMemory(
        self._device.weight_bytes, budget.token_bytes, tokens, options.max_sequences, context, _MAX_DRAFTING,
        config.near_context, at_once
    )
    super().__init__(shard, memory, config.hidden_size, n_words)
    self._final_norm = FinalNorm(checkpoint)
    self._ropes = [(
        *arrays, np.stack([inverse_frequencies(rope, config.rotary_dim, far)
                           for far in (False, True)]), np.float32(attention_factor(rope, config.max_context))
    ) for rope, arrays in self._decoder.arrays.ropes.items()]
    self._windows = {layer.window for layer in self._decoder.layers}

  @property
  def exactness(self) -> Exactness:
    """A row's numbers depend on no size at all."""
    return Exactness()

  def step(self, batch: Batch) -> npt.NDArray[Any]:
    return self._computed(batch, self._logits if self.shard.is_last else self._hidden)

  def hidden_states(self, batch: Batch) -> npt.NDArray[np.float32]:
    return self._final_norm(self._computed(batch, self._hidden))

  def length(self, sequence: int) -> int:
    return self._kv.length(sequence)

  def _commit(self, entries: tuple[BatchEntry, ...]) -> None:
    for entry in entries:
      self._kv.held(entry.sequence).length += entry.n_tokens

  def _logits(self, batch: Batch) -> npt.NDArray[Any]:
    return self._run(batch, gather_logit_rows(batch.entries))

  def _hidden(self, batch: Batch) -> npt.NDArray[Any]:
    return self._run(batch, None)

  def _run(self, batch: Batch, wanted: npt.NDArray[np.int64] | None) -> npt.NDArray[Any]:
    """Logits of the `wanted` tokens, or all tokens' hidden states where that is None."""
    for entry in batch.entries:
      self._extend(entry.sequence, entry.position + entry.n_tokens)
    if batch.hidden is None:
      assert self._embedding is not None
      x = self._embedding(batch.token_ids)
    else:
      x = batch.hidden
    n = batch.n_tokens
    counts = [entry.n_tokens for entry in batch.entries]
    places = np.repeat(np.array([self._kv.held(e.sequence).place for e in batch.entries], np.int32), counts)
    positions = np.concatenate([np.arange(e.position, e.position + e.n_tokens, dtype=np.int32) for e in batch.entries])
    far = np.repeat([int(e.far) for e in batch.entries], counts)
    outs = []
    for start in range(0, n, MAX_ROWS):
      end = min(n, start + MAX_ROWS)
      self._run_layers(x[start:end], positions[start:end], places[start:end], far[start:end])
      if wanted is None:
        outs.append(
            self._decoder.arrays.x.read((end - start) * self._config.hidden_size).reshape(end - start, -1).copy()
        )
      else:
        inside = wanted[(wanted >= start) & (wanted < end)] - start
        outs.append(self._run_head(inside.astype(np.int32)))
    return outs[0] if len(outs) == 1 else np.concatenate(outs)

  def _extend(self, sequence: int, length: int) -> None:
    """Give a sequence the pages that it needs for so many tokens."""
    held = self._kv.extend(sequence, length)
    while held.dirty:
      self._device.set(target=held.dirty[-1])
      run(self._decoder.clear_page)
      held.dirty.pop()
    if held.entered < len(held.pages):
      self._decoder.write_table(held.place, held.pages, held.entered)
      held.entered = len(held.pages)

  def _run_layers(self, x: Floats, positions: Ints, places: Ints, far: npt.NDArray[np.int64]) -> None:
    arrays, device, n = self._decoder.arrays, self._device, len(x)
    arrays.x.write(x)
    arrays.positions.write(positions)
    arrays.places.write(places)
    for cos, sin, frequencies, factor in self._ropes:
      angles = positions[:, None] * frequencies[far]
      cos.write((np.cos(angles) * factor).astype(np.float32))
      sin.write((np.sin(angles) * factor).astype(np.float32))
    tile = tile_of(n)
    tiles = blocks_for(n, tile)
    device.set(rows=n, tiles=tiles)
    groups = {window: list(self._groups(positions, window)) for window in self._windows}
    for layer in self._decoder.layers:
      run(layer.before[tile])
      for first, count, pages in groups[layer.window]:
        device.set(row0=first, rows=count, pages=pages)
        run(layer.attention)
      device.set(rows=n)
      run(layer.after[tile])

  def _groups(self, positions: Ints, window: int | None) -> Iterator[tuple[int, int, int]]:
    """Rows that look at the keys together: (first, count, pages of keys that the longest of them sees).

    A group is cut where its scores would not fit, and on a CPU where rows would look at many more pages than they have.
    """
    last = positions // PAGE
    first = np.zeros_like(last) if window is None else np.maximum(positions - (window - 1), 0) // PAGE
    pages = last - first + 1
    room = self._decoder.arrays.scores.size // (self._config.n_heads * PAGE)
    start, most = 0, 0
    for row, own in enumerate(pages.tolist()):
      longest = max(most, own)
      uneven = self._device.on_cpu and row > start and (own > most + 1 or own < most - 1)
      if row > start and (uneven or longest * (row + 1 - start) > room):
        yield start, row - start, most
        start, longest = row, own
      most = longest
    yield start, len(positions) - start, most

  def _run_head(self, rows: Ints) -> Floats:
    """Logits of these rows of the step."""
    arrays, vocabulary, n = self._decoder.arrays, self._config.vocab_size, len(rows)
    if n == 0:
      return np.empty((0, vocabulary), np.float32)
    arrays.wanted.write(rows)
    tile = tile_of(n)
    self._device.set(rows=n, tiles=blocks_for(n, tile))
    run(self._decoder.head[tile])
    stride = self._decoder.logit_stride
    logits: Floats = arrays.logits.read(n * stride).reshape(n, stride)[:, :vocabulary]
    if cap := self._config.final_softcap:
      return np.asarray(np.tanh(logits / np.float32(cap)) * np.float32(cap))
    return logits.copy()

  def drop(self, sequence: int) -> None:
    self._kv.drop(sequence)

  def truncate(self, sequence: int, length: int) -> None:
    self._kv.truncate(sequence, length)
    if self._kv.length(sequence) == length:
      self._clear_tail(sequence, length)

  def _clear_tail(self, sequence: int, length: int) -> None:
    """What a page still holds behind a sequence's `length` tokens may be no number, which 0 would not hide."""
    if length % PAGE:
      self._device.set(target=self._kv.held(sequence).pages[-1], keep=length % PAGE)
      run(self._decoder.clear_tail)

  def _copy(self, source: int, target: int, length: int) -> None:
    try:
      self._extend(target, length)
      for old, new in zip(self._kv.held(source).pages, self._kv.held(target).pages, strict=False):
        self._device.set(source=old, target=new)
        run(self._decoder.copy_page)
      self._clear_tail(target, length)
    except Exception as error:
      self._kv.drop(target)
      raise engine_error(self.library, error) from error
    self._kv.held(target).length = length

  def close(self) -> None:
    del self._decoder, self._kv


def create() -> InferenceEngine:
  return InferenceEngine("tinygrad", TinygradStage)
