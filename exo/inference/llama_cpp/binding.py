"""The C interface of llama.cpp, as far as exo uses it: functions of llama.h and ggml.h, and their structures by build.

Structures go by value, and another field stands in them every few months. So a library is taken only if the defaults that it fills in
itself stand where one of the layouts that are known here has them. `LAYOUTS` names the builds that were tried.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from exo.errors import EngineUnavailableError
from exo.inference.llama_cpp.open_library import open_library

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


_CONTEXT_HEAD: list[Any] = [
    ("n_ctx", _u32), ("n_batch", _u32), ("n_ubatch", _u32), ("n_seq_max", _u32), ("n_rs_seq", _u32), ("n_outputs_max", _u32),
    ("n_outputs_max_per_seq", _u32), ("n_threads", _i32), ("n_threads_batch", _i32), ("ctx_type", _i32), ("rope_scaling", _i32),
    ("pooling", _i32), ("attention", _i32), ("flash_attn", _i32), ("rope_base", _f32), ("rope_scale", _f32), ("yarn_ext", _f32),
    ("yarn_attn", _f32), ("yarn_fast", _f32), ("yarn_slow", _f32), ("yarn_orig_ctx", _u32), ("defrag", _f32),
    ("cb_eval", EvalCallback), ("cb_eval_data", _p), ("type_k", _i32), ("type_v", _i32)
]  # yapf: disable
_CONTEXT_TAIL: list[Any] = [
    ("abort", _p), ("abort_data", _p), ("embeddings", _flag), ("offload_kqv", _flag), ("no_perf", _flag), ("op_offload", _flag),
    ("swa_full", _flag), ("kv_unified", _flag), ("samplers", _p), ("n_samplers", _size), ("ctx_other", _p)
]  # yapf: disable


class ContextParams(ctypes.Structure):
  _fields_: ClassVar = [*_CONTEXT_HEAD, ("moe_cache_size", _size), *_CONTEXT_TAIL]


class ContextParamsBefore(ctypes.Structure):
  """Of ggml 0.25."""
  _fields_: ClassVar = [*_CONTEXT_HEAD, *_CONTEXT_TAIL]


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


NATIVE = "0.3.36"  # of llama-cpp-python, whose sources are built here


@dataclass(frozen=True, slots=True)
class Layout:
  """How the structures of some builds are laid out."""
  builds: str
  context: type[ctypes.Structure] = ContextParams
  model: type[ctypes.Structure] = ModelParams

  def fits(self, library: Any) -> bool:
    return (
        _may_end_here(library, "llama_context_default_params", self.context)
        and _may_end_here(library, "llama_model_default_params", self.model) and self._has_defaults(
            _filled(library, "llama_context_default_params", self.context),
            _filled(library, "llama_model_default_params", self.model)
        )
    )

  @staticmethod
  def _has_defaults(context: Any, model: Any) -> bool:
    numbers = (context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max, context.type_k, context.type_v)
    return (
        numbers == (512, 2048, 512, 1, 1, 1) and context.defrag == context.yarn_ext == -1.0
        and context.pooling == context.attention == context.flash_attn == -1 and context.offload_kqv
        and context.op_offload and not context.embeddings and model.use_extra_bufts and not model.vocab_only
        and not model.no_alloc
    )


LAYOUTS = (Layout("xllamacpp 2026.10 (11549)"), Layout(f"llama-cpp-python {NATIVE}", ContextParamsBefore))
_ROOM = 1024  # what an unknown library writes beyond what is known here must not hurt


def known_builds() -> str:
  return ", ".join(layout.builds for layout in LAYOUTS)


def _filled(library: Any, name: str, structure: type[ctypes.Structure]) -> Any:
  """What a function returns that fills in defaults, if it is laid out so."""
  class Roomy(ctypes.Structure):
    _fields_: ClassVar = [("params", structure), ("room", ctypes.c_ubyte * _ROOM)]

  return ctypes.CFUNCTYPE(Roomy)((name, library))().params


def _may_end_here(library: Any, name: str, structure: type[ctypes.Structure]) -> bool:
  """Whether a function that returns a structure writes to the last field of this one, and not beyond. On x86-64 a large result goes
  where a hidden first argument points, so what is written can be seen; elsewhere defaults alone decide."""
  if platform.machine() not in ("x86_64", "AMD64") or sys.maxsize < 2**32:
    return True
  returned = ctypes.CFUNCTYPE(_p, _p)((name, library))
  written = bytearray(_ROOM)
  for pattern in (0x55, 0xaa):
    room = (ctypes.c_ubyte * _ROOM)(*[pattern] * _ROOM)
    returned(ctypes.addressof(room))
    written = bytearray(old or byte != pattern for old, byte in zip(written, room, strict=True))
  last: Any = getattr(structure, structure._fields_[-1][0])
  return last.offset < written.rindex(1) + 1 <= ctypes.sizeof(structure) if any(written) else False


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
    ("llama_vocab_get_attr", _i32, _p, _i32),
    ("llama_vocab_get_add_bos", _flag, _p),
    ("llama_token_to_piece", _i32, _p, _i32, _p, _i32, _i32, _flag),
    ("llama_tokenize", _i32, _p, _char_p, _i32, _p, _i32, _flag, _flag),
    ("llama_model_load_from_file", _p, _char_p, ModelParams),
    ("llama_decode", _i32, _p, LlamaBatch),
    ("llama_get_logits", ctypes.POINTER(_f32), _p),
    ("llama_set_embeddings", None, _p, _flag),
    ("llama_get_embeddings", ctypes.POINTER(_f32), _p),
    ("llama_get_memory", _p, _p),
    ("llama_memory_seq_rm", _flag, _p, _i32, _i32, _i32),
    ("llama_memory_seq_pos_max", _i32, _p, _i32),
    ("llama_state_seq_get_size", _size, _p, _i32),
    ("llama_state_seq_get_data", _size, _p, _p, _size, _i32),
    ("llama_state_seq_set_data", _size, _p, _p, _size, _i32),
    ("llama_version", _char_p),
    ("llama_print_system_info", _char_p),
    ("ggml_version", _char_p),
    ("ggml_backend_reg_count", _size),
    ("ggml_backend_load_all_from_path", None, _char_p),
    ("ggml_get_name", _char_p, _p),
    ("ggml_nelements", _i64, _p),
    ("ggml_backend_tensor_get", None, _p, _p, _size, _size),
    ("ggml_backend_tensor_set", None, _p, _p, _size, _size),
)


def load_library(path: Path) -> Any:
  """The library with its functions declared. Raises `EngineUnavailableError` for one that cannot be loaded or is laid out otherwise."""
  library = open_library(path)
  for name, *_ in _FUNCTIONS:
    if not hasattr(library, name):
      raise EngineUnavailableError(f"{path.name} has no {name}: it is no llama.cpp that exo knows ({known_builds()})")
  layout = next((layout for layout in LAYOUTS if layout.fits(library)), None)
  if layout is None:
    raise EngineUnavailableError(
        f"{path.name} is a llama.cpp whose structures exo does not know (it knows {known_builds()})"
    )
  of_build = {ContextParams: layout.context, ModelParams: layout.model}
  for name, result, *arguments in _FUNCTIONS:
    function = getattr(library, name)
    function.restype, function.argtypes = of_build.get(result, result), [of_build.get(a, a) for a in arguments]
  if not library.ggml_backend_reg_count():  # a build whose backends are files of their own
    library.ggml_backend_load_all_from_path(bytes(path.parent))
    if not library.ggml_backend_reg_count():
      raise EngineUnavailableError(f"{path.name} finds none of its backends (libggml-cpu and others) in {path.parent}")
  return library
