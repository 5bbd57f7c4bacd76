"""The C interface of llama.cpp, as far as exo uses it: functions of llama.h and ggml.h, and their structures by build.

Structures go by value, and another field stands in them every few months. So a library is taken only if the defaults that it fills in
itself stand where the structures that are known here have them. `LAYOUTS` names the builds that were tried.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from exo.errors import EngineUnavailableError

_p, _f32, _i32, _u32, _i64 = ctypes.c_void_p, ctypes.c_float, ctypes.c_int32, ctypes.c_uint32, ctypes.c_int64
_flag, _size, _char_p, _i8 = ctypes.c_bool, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int8

EvalCallback = ctypes.CFUNCTYPE(_flag, _p, _flag, _p)
LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, _char_p, _p)
ProgressCallback = ctypes.CFUNCTYPE(_flag, _f32, _p)


class ModelParams(ctypes.Structure):
  _fields_: ClassVar = [
      ("devices", _p), ("buffer_types", _p), ("n_gpu_layers", _i32), ("split_mode", _i32), ("load_mode", _i32), ("lazy_mode", _i32),
      ("main_gpu", _i32), ("tensor_split", _p), ("progress", ProgressCallback), ("progress_data", _p), ("kv_overrides", _p),
      ("vocab_only", _flag), ("check_tensors", _flag), ("use_extra_bufts", _flag), ("no_host", _flag), ("no_alloc", _flag),
      ("load_mtp", _flag)
  ]  # yapf: disable


class ContextParams(ctypes.Structure):
  _fields_: ClassVar = [
      ("n_ctx", _u32), ("n_batch", _u32), ("n_ubatch", _u32), ("n_seq_max", _u32), ("n_rs_seq", _u32), ("n_outputs_max", _u32),
      ("n_outputs_max_per_seq", _u32), ("n_threads", _i32), ("n_threads_batch", _i32), ("ctx_type", _i32), ("rope_scaling", _i32),
      ("pooling", _i32), ("attention", _i32), ("flash_attn", _i32), ("rope_base", _f32), ("rope_scale", _f32), ("yarn_ext", _f32),
      ("yarn_attn", _f32), ("yarn_fast", _f32), ("yarn_slow", _f32), ("yarn_orig_ctx", _u32), ("defrag", _f32),
      ("cb_eval", EvalCallback), ("cb_eval_data", _p), ("type_k", _i32), ("type_v", _i32), ("moe_cache_size", _size), ("abort", _p),
      ("abort_data", _p), ("embeddings", _flag), ("offload_kqv", _flag), ("no_perf", _flag), ("op_offload", _flag),
      ("swa_full", _flag), ("kv_unified", _flag), ("samplers", _p), ("n_samplers", _size), ("ctx_other", _p)
  ]  # yapf: disable


class _Value(ctypes.Union):
  _fields_: ClassVar = [("i64", _i64), ("f64", ctypes.c_double), ("flag", _flag), ("text", ctypes.c_char * 128)]


class KvOverride(ctypes.Structure):
  """Of a file's metadata, what counts in their place."""
  _fields_: ClassVar = [("tag", ctypes.c_int), ("key", ctypes.c_char * 128), ("value", _Value)]

  @classmethod
  def several(cls, values: Mapping[str, str | int]) -> ctypes.Array[KvOverride]:
    """With an end, whose key is empty."""
    found = (cls * (len(values) + 1))()
    for entry, (key, value) in zip(found, values.items(), strict=False):
      entry.key = key.encode()
      if isinstance(value, int):
        entry.tag, entry.value.i64 = 0, value
      else:
        entry.tag, entry.value.text = 3, value.encode()
    return found


class LlamaBatch(ctypes.Structure):
  _fields_: ClassVar = [
      ("n_tokens", _i32), ("token", ctypes.POINTER(_i32)), ("embd", ctypes.POINTER(_f32)), ("pos", ctypes.POINTER(_i32)),
      ("n_seq_id", ctypes.POINTER(_i32)), ("seq_id", ctypes.POINTER(ctypes.POINTER(_i32))), ("logits", ctypes.POINTER(_i8))
  ]  # yapf: disable


@dataclass(frozen=True, slots=True)
class Layout:
  """What a library fills in by itself, where it is laid out as the structures above."""
  builds: str

  def fits(self, library: Any) -> bool:
    context, model = library.llama_context_default_params(), library.llama_model_default_params()
    numbers = (context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max, context.type_k, context.type_v)
    return (
        numbers == (512, 2048, 512, 1, 1, 1) and context.defrag == context.yarn_ext == -1.0
        and context.pooling == context.attention == context.flash_attn == -1 and context.offload_kqv
        and context.op_offload and not context.embeddings and model.use_extra_bufts and not model.vocab_only
        and not model.no_alloc
    )


LAYOUTS = (Layout("xllamacpp 2026.10 (11549), llama-cpp-python 0.3.36"), )

_FUNCTIONS: tuple[tuple[Any, ...], ...] = (
    ("llama_backend_init", None),
    ("llama_log_set", None, LogCallback, _p),
    ("llama_model_default_params", ModelParams),
    ("llama_context_default_params", ContextParams),
    ("llama_model_load_from_file_ptr", _p, _p, ModelParams),
    ("llama_model_free", None, _p),
    ("llama_init_from_model", _p, _p, ContextParams),
    ("llama_free", None, _p),
    ("llama_model_n_embd", _i32, _p),
    ("llama_model_is_recurrent", _flag, _p),
    ("llama_model_is_hybrid", _flag, _p),
    ("llama_model_get_vocab", _p, _p),
    ("llama_vocab_n_tokens", _i32, _p),
    ("llama_vocab_is_eog", _flag, _p, _i32),
    ("llama_tokenize", _i32, _p, _char_p, _i32, _p, _i32, _flag, _flag),
    ("llama_model_load_from_file", _p, _char_p, ModelParams),
    ("llama_decode", _i32, _p, LlamaBatch),
    ("llama_get_logits", ctypes.POINTER(_f32), _p),
    ("llama_get_memory", _p, _p),
    ("llama_memory_seq_rm", _flag, _p, _i32, _i32, _i32),
    ("llama_memory_seq_pos_max", _i32, _p, _i32),
    ("llama_state_seq_get_size", _size, _p, _i32),
    ("llama_state_seq_get_data", _size, _p, _p, _size, _i32),
    ("llama_state_seq_set_data", _size, _p, _p, _size, _i32),
    ("ggml_get_name", _char_p, _p),
    ("ggml_nelements", _i64, _p),
    ("ggml_backend_tensor_get", None, _p, _p, _size, _size),
    ("ggml_backend_tensor_set", None, _p, _p, _size, _size),
)


def load_library(path: Path) -> Any:
  """The library with its functions declared. Raises `EngineUnavailableError` for one that cannot be loaded or is laid out otherwise."""
  try:
    library = ctypes.CDLL(str(path))
  except OSError as error:
    raise EngineUnavailableError(f"{path.name} cannot be loaded: {error}") from error
  for name, result, *arguments in _FUNCTIONS:
    try:
      function = getattr(library, name)
    except AttributeError:
      raise EngineUnavailableError(f"{path.name} has no {name}: it is no llama.cpp that exo knows") from None
    function.restype, function.argtypes = result, arguments
  if not any(layout.fits(library) for layout in LAYOUTS):
    known = "; ".join(layout.builds for layout in LAYOUTS)
    raise EngineUnavailableError(f"{path.name} is a llama.cpp whose structures exo does not know (it knows {known})")
  return library
