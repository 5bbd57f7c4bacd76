"""A Llama of any shape whose weights mean nothing, as a GGUF file in memory: what a library can compute, and how fast."""

from __future__ import annotations

import ctypes
import math
import random
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from exo.errors import EngineError
from exo.inference.llama_cpp.binding import LlamaBatch

_U32, _F32, _STRING = 4, 6, 8
_ALIGNMENT = 32
_WORDS = 64
_SCALE = struct.pack("<e", 2e-4)
#: elements and bytes of a block, GGML's number, and where its scales stand
_ENCODINGS = {"F32": (1, 4, 0, ()), "Q4_0": (32, 18, 2, (0, )), "Q8_0": (32, 34, 8, (0, )), "Q4_K": (256, 144, 12, (0, 2)),
              "Q6_K": (256, 210, 14, (208, ))}  # yapf: disable
_Q8_0, _F16 = 8, 1  # keys and values as the engine keeps them
_TOLERANCE = 0.05  # of the span between a row's numbers: kernels round otherwise
_PROMPT = 64


@dataclass(frozen=True, slots=True)
class TrialShape:
  """`encodings` are those of a layer's matrices: of attention, gate, up and down."""
  layers: int
  hidden: int
  wide: int
  heads: int
  kv_heads: int
  encodings: tuple[str, str, str, str] = ("Q4_K", "Q4_K", "Q4_K", "Q6_K")


#: of every encoding that is repacked for a processor in a way of its own
SMALL = TrialShape(1, 256, 512, 4, 2, ("Q4_K", "Q4_0", "Q8_0", "Q6_K"))
#: two layers of Llama 3.2 1B in Q4_K_M: more than a processor's caches hold
REAL = TrialShape(2, 2048, 8192, 32, 8)


def trial_file(shape: TrialShape) -> bytes:
  head_dim = shape.hidden // shape.heads
  numbers = {
      "context_length": 4096, "embedding_length": shape.hidden, "block_count": shape.layers, "feed_forward_length": shape.wide,
      "attention.head_count": shape.heads, "attention.head_count_kv": shape.kv_heads, "vocab_size": _WORDS,
      "rope.dimension_count": head_dim
  }  # yapf: disable
  entries = [_text("general.architecture") + struct.pack("<I", _STRING) + _text("llama")]
  entries.append(_text("tokenizer.ggml.model") + struct.pack("<I", _STRING) + _text("none"))
  entries.append(_text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", _F32, 1e-5))
  entries += [_text(f"llama.{key}") + struct.pack("<II", _U32, number) for key, number in numbers.items()]
  infos: list[bytes] = []
  data: list[bytes] = []
  at = 0
  tensors = list(_tensors(shape))
  for seed, (name, dims, encoding) in enumerate(tensors):
    packed = _weights(math.prod(dims), encoding, seed)
    infos.append(
        _text(f"{name}.weight") + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, _ENCODINGS[encoding][2], at)
    )
    data.append(packed + bytes(-len(packed) % _ALIGNMENT))
    at += len(data[-1])
  head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(entries)) + b"".join(entries + infos)
  return head + bytes(-len(head) % _ALIGNMENT) + b"".join(data)


def _tensors(shape: TrialShape) -> Iterator[tuple[str, tuple[int, ...], str]]:
  """Names, dimensions (columns first, as GGUF has them) and encodings."""
  attention, gate, up, down = shape.encodings
  kv = shape.kv_heads * (shape.hidden // shape.heads)
  yield "token_embd", (shape.hidden, _WORDS), "F32"
  yield "output", (shape.hidden, _WORDS), attention
  yield "output_norm", (shape.hidden, ), "F32"
  for i in range(shape.layers):
    for norm in ("attn_norm", "ffn_norm"):
      yield f"blk.{i}.{norm}", (shape.hidden, ), "F32"
    for part, rows in (("q", shape.hidden), ("k", kv), ("v", kv), ("output", shape.hidden)):
      yield f"blk.{i}.attn_{part}", (shape.hidden, rows), attention
    yield f"blk.{i}.ffn_gate", (shape.hidden, shape.wide), gate
    yield f"blk.{i}.ffn_up", (shape.hidden, shape.wide), up
    yield f"blk.{i}.ffn_down", (shape.wide, shape.hidden), down


def _weights(count: int, encoding: str, seed: int) -> bytes:
  """Blocks of any codes under small scales, which come again and again."""
  chance, (elements, size, _, scales) = random.Random(seed), _ENCODINGS[encoding]
  if encoding == "F32":
    some = bytearray(struct.pack("<1021f", *(chance.uniform(0.5, 1.5) for _ in range(1021))))
  else:
    some = bytearray(chance.randbytes(509 * size))
    for start in range(0, len(some), size):
      for at in scales:
        some[start + at:start + at + 2] = _SCALE
  n_bytes = count // elements * size
  return (bytes(some) * (n_bytes // len(some) + 1))[:n_bytes]


def _text(value: str) -> bytes:
  return struct.pack("<Q", len(value)) + value.encode()


class TrialModel:
  """Sequences of tokens in one context. Raises `EngineError` where the library says no; it may also end the process."""
  def __init__(self, library: Any, data: bytes, threads: int, sequences: int, plain: bool) -> None:
    """`data` is a GGUF file, whose weights are used as they lie there if `plain`."""
    self._library = library
    libc = ctypes.CDLL(None)
    libc.fmemopen.restype, libc.fmemopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p]
    libc.fclose.argtypes = [ctypes.c_void_p]
    stream = libc.fmemopen(data, len(data), b"rb")
    model_params = library.llama_model_default_params()
    model_params.n_gpu_layers = model_params.load_mode = 0
    model_params.use_extra_bufts = not plain
    try:
      self._model = library.llama_model_load_from_file_ptr(stream, model_params)
    finally:
      libc.fclose(stream)
    if not self._model:
      raise EngineError("it cannot load a small model")
    params = library.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 512 * sequences, 512, 512, sequences
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn, params.type_k, params.type_v = 1, _Q8_0, _F16
    self._context = library.llama_init_from_model(self._model, params)
    if not self._context:
      raise EngineError("it cannot make a context")
    self._lengths = [0] * sequences

  def step(self, parts: Sequence[tuple[int, Sequence[int]]]) -> list[list[float]]:
    """Sequences and what follows in each: the logits of the last token of each."""
    n = sum(len(tokens) for _, tokens in parts)
    token, pos, counts, wanted = ((kind * n)()
                                  for kind in (ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.c_int8))
    ids, pointers = (ctypes.c_int32 * n)(), (ctypes.POINTER(ctypes.c_int32) * n)()
    at, last = 0, []
    for sequence, tokens in parts:
      for number in tokens:
        token[at], pos[at], counts[at], ids[at] = number % _WORDS, self._lengths[sequence], 1, sequence
        pointers[at] = ctypes.cast(ctypes.byref(ids, 4 * at), ctypes.POINTER(ctypes.c_int32))
        self._lengths[sequence] += 1
        at += 1
      wanted[at - 1] = 1
      last.append(at - 1)
    status = self._library.llama_decode(self._context, LlamaBatch(n, token, None, pos, counts, pointers, wanted))
    if status:
      raise EngineError(f"it does not decode {n} rows (status {status})")
    logits = self._library.llama_get_logits(self._context)
    return [logits[i * _WORDS:(i + 1) * _WORDS] for i in range(len(last))]

  def close(self) -> None:
    self._library.llama_free(self._context)
    self._library.llama_model_free(self._model)


def live_through(library: Any, plain: bool) -> None:
  """Read a prompt, then decode one row, two and four, each by kernels of its own. Raises `EngineError` where the library says no, or where
  the same text comes out otherwise, as of a kernel that is wrong."""
  model = TrialModel(library, trial_file(SMALL), 2, 7, plain)
  rows = []
  for group in (range(1), range(1, 3), range(3, 7)):
    model.step([(i, range(40)) for i in group])
    rows += model.step([(i, [41]) for i in group])
  model.close()
  span = max(rows[0]) - min(rows[0])
  # comparisons with what is no number are false
  if not all(
      abs(a - b) <= _TOLERANCE * span for row in rows for a, b in zip(rows[0], row, strict=True)
  ) or not span > 0:
    raise EngineError("it computes several rows otherwise than one")


def measured_speed(library: Any, plain: bool) -> tuple[float, float]:
  """Tokens per second of a prompt and of an answer on one core: two layers of a real shape. Takes about a second. Raises `EngineError`."""
  model = TrialModel(library, trial_file(REAL), 1, 1, plain)

  def seconds(tokens: int, calls: int) -> float:
    began = time.process_time()  # in which nobody else's are counted
    for _ in range(calls):
      model.step([(0, range(tokens))])
    return (time.process_time() - began) / calls

  seconds(_PROMPT, 1), seconds(1, 4)  # what is made at first use is not what is asked for
  prompt, decode = min(seconds(_PROMPT, 1) for _ in range(3)), min(seconds(1, 4) for _ in range(6))
  model.close()
  return _PROMPT / prompt, 1 / decode
