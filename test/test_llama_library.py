"""Which library of llama.cpp is used, and what is wrong with one that is not."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exo.cli.engine_command import comparison_lines, library_lines
from exo.config import config_from
from exo.errors import ConfigError, EngineUnavailableError
from exo.inference.engine import LogitsOf
from exo.inference.engines import offered_engines, probe_engine
from exo.inference.llama_cpp import binding, library_choice
from exo.inference.llama_cpp.binding import NATIVE, ContextParams, ContextParamsBefore, ModelParams, load_library
from exo.inference.llama_cpp.library_choice import Library, LibrarySpeed, chosen_library, compared, libraries, tried
from exo.inference.llama_cpp.library_file import LibraryFile, library_files
from exo.inference.llama_cpp.open_library import open_library, why_unopened
from exo.inference.llama_cpp.processor_instructions import processor_instructions
from exo.inference.weights.checkpoint import open_checkpoint
from test.support.nodes import ROOT, exo
from test.support.shaped_models import TINY, write_shaped
from test.support.stages import Stages

pytestmark = pytest.mark.skipif(next(library_files(), None) is None, reason="xllamacpp is not installed")

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
WHEEL = next((file for file in library_files() if file.origin == "xllamacpp"), None)
C_TYPES: dict[Any, str] = {
    ctypes.c_uint32: "uint32_t", ctypes.c_int32: "int32_t", ctypes.c_float: "float", ctypes.c_bool: "_Bool",
    ctypes.c_size_t: "size_t"
}  # yapf: disable
DEFAULTS = {
    "context": ".n_ctx = 512, .n_batch = 2048, .n_ubatch = 512, .n_seq_max = 1, .pooling = -1, .attention = -1, .flash_attn = -1, "
    ".yarn_ext = -1, .defrag = -1, .type_k = 1, .type_v = 1, .offload_kqv = 1, .op_offload = 1",
    "model": ".use_extra_bufts = 1"
}  # yapf: disable


@pytest.fixture(autouse=True)
def unnamed(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.delenv("EXO_LLAMA_CPP", raising=False)


def compiled(source: str, target: Path, *flags: str) -> Path:
  target.parent.mkdir(parents=True, exist_ok=True)
  code = target.with_suffix(".c")
  code.write_text(source)
  subprocess.run(["cc", "-shared", "-fPIC", "-Wl,--no-as-needed", "-o", target, code, *flags], check=True)
  return target


def laid_out(context: list[tuple[str, Any]], model: list[tuple[str, Any]]) -> str:
  """A library that has all functions and does nothing but fill in its defaults, where its structures have them."""
  source = ["#include <stdint.h>", "#include <stddef.h>", "static size_t backends;"]
  for name, fields in (("context", context), ("model", model)):
    declared = " ".join(f"{C_TYPES.get(kind, 'void *')} {field};" for field, kind in fields)
    source.append(f"struct {name} {{ {declared} }};")
    source.append(
        f"struct {name} llama_{name}_default_params(void) {{ return (struct {name}){{ {DEFAULTS[name]} }}; }}"
    )
  source.append("size_t ggml_backend_reg_count(void) { return backends; }")
  source.append("void ggml_backend_load_all_from_path(const char *folder) { backends = folder[0] == '/'; }")
  own = re.findall(r"(\w+)\((?:void|const char \*folder)\)", "\n".join(source))
  source += [f"void *{name}(void) {{ return NULL; }}" for name, *_ in binding._FUNCTIONS if name not in own]
  return "\n".join(source) + "\n"


def fields_of(structure: type[ctypes.Structure]) -> list[tuple[str, Any]]:
  return [(name, kind) for name, kind, *_ in structure._fields_]


def test_the_library_is_looked_for_where_it_is_named_then_the_native_one_then_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  for path in ("llama_cpp/__init__.py", "llama_cpp/lib/libllama.so", "xllamacpp/__init__.py", "xllamacpp/xllamacpp.abi3.so",
               "mine/lib/libllama.so"):  # yapf: disable
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text("")
  monkeypatch.syspath_prepend(str(tmp_path))
  assert [(f.path.relative_to(tmp_path).as_posix(), f.origin, f.is_native)
          for f in library_files()] == [("llama_cpp/lib/libllama.so", "llama-cpp-python", True),
                                        ("xllamacpp/xllamacpp.abi3.so", "xllamacpp", False)]
  assert [f.path for f in library_files(tmp_path / "mine")] == [tmp_path / "mine/lib/libllama.so"]
  assert [f.path for f in library_files(tmp_path / "mine/lib/libllama.so")] == [tmp_path / "mine/lib/libllama.so"]
  (tmp_path /
   "mine/lib/libllama.so").rename(tmp_path / "mine/lib/libllama-0abc12de.so.0.5")  # as wheels' tools name them
  (tmp_path / "mine/lib/libllama-common.so").write_text("")
  assert [f.path.name for f in library_files(tmp_path / "mine")] == ["libllama-0abc12de.so.0.5"]


def test_a_named_library_is_used_or_its_error_said_and_never_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  with pytest.raises(ConfigError, match=r"EXO_LLAMA_CPP is /nowhere/at/all, where there is nothing"):
    config_from({}, {"EXO_LLAMA_CPP": "/nowhere/at/all"})
  (tmp_path / "libllama.so").write_text("no library")
  monkeypatch.setenv("EXO_LLAMA_CPP", str(tmp_path / "libllama.so"))
  assert [library.missing for library in libraries()] == ["libllama.so is no shared library"]
  assert probe_engine("llama_cpp").missing == "has no library that works: libllama.so is no shared library"
  with pytest.raises(EngineUnavailableError, match=r"llama_cpp cannot run here.*libllama\.so is no shared library"):
    offered_engines("llama_cpp")
  (tmp_path / "libllama.so").unlink()
  monkeypatch.setenv("EXO_LLAMA_CPP", str(tmp_path))
  with pytest.raises(EngineUnavailableError, match=r"EXO_LLAMA_CPP is to be .*/libllama\.so: No such file"):
    chosen_library()
  if WHEEL is not None:
    monkeypatch.setenv("EXO_LLAMA_CPP", str(WHEEL.path))
    assert chosen_library().file == LibraryFile(WHEEL.path, "EXO_LLAMA_CPP")


def test_the_library_is_tried_in_a_process_of_its_own() -> None:
  code = textwrap.dedent(
      """
      import sys
      from exo.inference.engines import offered_engines
      from exo.inference.llama_cpp.library_choice import chosen_library
      assert offered_engines("llama_cpp")[0].available
      library = chosen_library()
      assert library.version and library.instructions, library
      maps = open("/proc/self/maps").read()
      assert library.file.path.name not in maps and "libgomp" not in maps
  """
  )
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@needs_compiler
@pytest.mark.parametrize("structure", [ContextParams, ContextParamsBefore])
def test_a_known_layout_is_taken_and_its_backends_are_loaded_from_beside_it(
    structure: type[ctypes.Structure], tmp_path: Path
) -> None:
  path = compiled(laid_out(fields_of(structure), fields_of(ModelParams)), tmp_path / "libllama.so")
  library = load_library(path)
  assert library.ggml_backend_reg_count() == 1
  params = library.llama_context_default_params()
  assert params.n_batch == 2048 and params.offload_kqv and type(params) is structure
  # it has all functions and does nothing: the trial says so
  assert "ended its process" in tried(LibraryFile(path, "EXO_LLAMA_CPP")).missing


def changed(fields: list[tuple[str, Any]], at: int, *instead: tuple[str, Any]) -> list[tuple[str, Any]]:
  """Without the field there, and with these."""
  return [*fields[:at], *instead, *fields[at + 1:]]


CONTEXT = fields_of(ContextParams)
OTHERWISE = {
    "a field more at the beginning": changed(CONTEXT, 0, ("another", ctypes.c_void_p), CONTEXT[0]),
    "one before the flags": changed(CONTEXT, 29, ("another", ctypes.c_void_p), CONTEXT[29]),
    "one less": changed(CONTEXT, 10), "two that changed places": [*CONTEXT[:20], CONTEXT[21], CONTEXT[20], *CONTEXT[22:]]
}  # yapf: disable


@needs_compiler
@pytest.mark.parametrize("how", OTHERWISE)
def test_a_library_whose_structures_are_laid_out_otherwise_is_refused_with_the_known_ones(
    how: str, tmp_path: Path
) -> None:
  path = compiled(laid_out(OTHERWISE[how], fields_of(ModelParams)), tmp_path / "libllama.so")
  known = rf"structures exo does not know \(it knows xllamacpp 2026\.10 .*, llama-cpp-python {re.escape(NATIVE)}\)"
  with pytest.raises(EngineUnavailableError, match=known):
    load_library(path)
  assert re.search(known, tried(LibraryFile(path, "EXO_LLAMA_CPP")).missing)


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="only there what a function writes can be seen")
@pytest.mark.parametrize(("which", "change"), [("context", "more"), ("context", "less"), ("model", "more")])
def test_a_structure_that_ends_elsewhere_is_refused(which: str, change: str, tmp_path: Path) -> None:
  """Although all defaults that are looked at stand where they should: a field more at its end, or one less."""
  fields = {"context": fields_of(ContextParams), "model": fields_of(ModelParams)}
  if change == "more":
    fields[which] = [*fields[which], ("another", ctypes.c_void_p)]
  else:
    fields[which] = fields[which][:-1]
  path = compiled(laid_out(fields["context"], fields["model"]), tmp_path / "libllama.so")
  with pytest.raises(EngineUnavailableError, match="structures exo does not know"):
    load_library(path)


@needs_compiler
def test_parts_that_lie_beside_a_library_are_found_there(tmp_path: Path) -> None:
  """A build whose files do not say where the others are; one of them has another name than the one that is asked for."""
  base = compiled("int base(void) { return 7; }", tmp_path / "libggml-base.so", "-Wl,-soname,libggml-base.so.0")
  middle = compiled(
      "int base(void); int middle(void) { return base(); }", tmp_path / "libggml.so.0", str(base),
      "-Wl,-soname,libggml.so.0"
  )
  path = compiled("int middle(void); int top(void) { return middle(); }", tmp_path / "libllama.so", str(middle))
  subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(path)!r})"], check=False)
  with pytest.raises(OSError, match=r"libggml\.so\.0"):
    ctypes.CDLL(str(path))
  hidden = base.rename(tmp_path / "hidden")
  with pytest.raises(EngineUnavailableError, match=r"libggml\.so\.0 needs libggml-base\.so\.0, which is missing"):
    open_library(path)
  hidden.rename(base)
  assert open_library(path).top() == 7


@pytest.mark.parametrize(("said", "words"), [
    ("libgomp.so.1: cannot open shared object file: No such file or directory",
     "x.so needs libgomp.so.1, which is missing: install libgomp1 (Debian, Ubuntu), libgomp (Fedora, Alpine) or gcc-libs (Arch)"),
    ("libvulkan.so.1: cannot open shared object file: No such file or directory", "install libvulkan1 (Debian, Ubuntu)"),
    ("libodd-abc.so.3: cannot open shared object file: No such file or directory", "install the package that brings it"),
    ("/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.99' not found (required by /x.so)", "x.so needs glibc 2.99, and this is"),
    ("/lib/libstdc++.so.6: version `GLIBCXX_3.4.99' not found (required by /x.so)", "needs a libstdc++ with GLIBCXX 3.4.99: take"),
    ("/x.so: wrong ELF class: ELFCLASS32", "built for another kind of processor"),
    ("/x.so: file too short", "x.so is no shared library"),
    ("/x.so: undefined symbol: odd", "x.so cannot be loaded: /x.so: undefined symbol: odd"),
])  # yapf: disable
def test_what_a_library_lacks_is_said_with_the_package_that_brings_it(said: str, words: str) -> None:
  assert words in why_unopened("x.so", said)


def without_libgomp(tmp_path: Path) -> tuple[str, ...]:
  """A command's prefix: libgomp is nowhere then. The folder of libraries is another one, with links to all others."""
  listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
  folders = {Path(path).parent.resolve() for path in re.findall(r"libgomp\.so\.1 .*=> (\S+)", listed)}
  if len(folders) != 1:
    pytest.skip(f"libgomp is in {len(folders)} folders")
  (folder, ) = folders
  real, shown = tmp_path / "real", tmp_path / "shown"
  for path in (real, shown):
    path.mkdir()
  for path in folder.iterdir():
    if not path.name.startswith("libgomp"):
      (shown / path.name).symlink_to(real / path.name)
  script = f'mount --bind {folder} {real} && mount --bind {shown} {folder} && exec "$@"'
  prefix = ("unshare", "-m", "sh", "-c", script, "sh")
  if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
    pytest.skip("mount namespaces need root")
  return prefix


def test_line_7_without_libgomp_there_is_a_sentence_with_what_to_install(tmp_path: Path) -> None:
  prefix, home = without_libgomp(tmp_path), tmp_path / "home"
  words = "needs libgomp.so.1, which is missing: install libgomp1 (Debian, Ubuntu)"

  def said(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*prefix, sys.executable, "-m", "exo", *arguments],
                          cwd=ROOT,
                          env=os.environ | {"EXO_HOME": str(home)},
                          capture_output=True,
                          text=True,
                          timeout=120,
                          check=False)

  listed = said("engine")
  assert listed.returncode == 1 and words in listed.stdout and len(listed.stdout.splitlines()) == 1
  started = said("--inference-engine", "llama_cpp")
  assert started.returncode == 1
  assert len(started.stderr.splitlines()) == 1 and "engine llama_cpp cannot run here" in started.stderr
  assert words in started.stderr
  doctor = said("doctor", "--listen-port", "0")
  assert words in doctor.stdout, doctor.stdout
  # the others can still run
  assert "comes first" in doctor.stdout and "FAIL" not in doctor.stdout


# what is real but for one function, which stands before the library's own
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <math.h>
#include <signal.h>
struct batch { int32_t n; int32_t *token; float *embd; int32_t *pos; int32_t *n_seq; int32_t **seq; int8_t *logits; };
static int32_t rows, repacks;
struct model_params { ENTRIES };
void *llama_model_load_from_file_ptr(void *file, struct model_params params) {
  repacks = params.use_extra_bufts;
  return ((void *(*)(void *, struct model_params)) dlsym(RTLD_NEXT, "llama_model_load_from_file_ptr"))(file, params);
}
int32_t llama_decode(void *context, struct batch batch) {
  rows = batch.n;
  FATE
  return ((int32_t (*)(void *, struct batch)) dlsym(RTLD_NEXT, "llama_decode"))(context, batch);
}
float *llama_get_logits(void *context) {
  float *found = ((float *(*)(void *)) dlsym(RTLD_NEXT, "llama_get_logits"))(context);
  WRONG
  return found;
}
"""
FATES = {
    "lives": ("", "", None),
    "asserts": (
        'if (rows == 2) { fprintf(stderr, "ggml.c:1: GGML_ASSERT(nrc == 1) failed\\n#0 0x1 in main\\n"); abort(); }',
        "", r"ended its process in a trial: Aborted \(ggml\.c:1: GGML_ASSERT\(nrc == 1\) failed\)"
    ),
    "ends by a signal": ("if (rows == 4) raise(4);", "", "ended its process in a trial: Illegal instruction"),
    "computes otherwise": (
        "", "if (rows == 4) found[70] += 100;", "fails in a trial: it computes several rows otherwise"
    ),
    "computes no numbers": (
        "", "if (rows == 4) found[70] = NAN;", "fails in a trial: it computes several rows otherwise"
    ),
    "says no": ("if (rows == 2) return -3;", "", r"it does not decode 2 rows \(status -3\)"),
}


def shim(folder: Path, before_decode: str, after: str = "") -> Path:
  """The wheel's library, with these lines in two of its functions, as that of a package in `folder`."""
  assert WHEEL is not None
  entries = " ".join(f"{C_TYPES.get(kind, 'void *')} {name};" for name, kind in fields_of(binding.ModelParams))
  source = SHIM.replace("FATE", before_decode).replace("WRONG", after).replace("ENTRIES", entries)
  (folder / "llama_cpp").mkdir()
  (folder / "llama_cpp" / "__init__.py").write_text("")
  return compiled(source, folder / "llama_cpp" / "lib" / "libllama.so", str(WHEEL.path), "-ldl")


@needs_compiler
def test_a_native_library_that_only_lives_with_plain_weights_is_used_so_or_the_next_if_that_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
  """As one was seen to on a processor with AMX: its kernels for repacked weights failed at two rows."""
  if WHEEL is None:
    pytest.skip("xllamacpp is not installed")
  path = shim(tmp_path, 'if (rows > 1 && repacks) { fprintf(stderr, "GGML_ASSERT(nrc == 1) failed\\n"); abort(); }')
  monkeypatch.syspath_prepend(str(tmp_path))
  first, second = libraries()
  assert first.file.path == path and not first.missing and not second.plain
  assert re.search(r"ended its process in a trial: Aborted \(GGML_ASSERT\(nrc == 1\) failed\)", first.plain)
  assert next(library_lines([first])).startswith("llama.cpp is llama-cpp-python")
  assert "without laying weights out for this processor: libllama.so" in "\n".join(library_lines([first, second]))
  for speeds, faster in (((1.0, 2.0), first), ((2.0, 1.0), second)):
    monkeypatch.setattr(
        library_choice, "compared", lambda pair, of=speeds: [LibrarySpeed(9.0, decode) for decode in of]
    )
    library_choice._is_faster.cache_clear()
    library_choice._tell.cache_clear()
    assert chosen_library() == faster
    how = "is used with weights as they lie in files" if faster is first else "is put aside"
    assert re.search(f"a library of llama.cpp {how}.*libllama.so", capsys.readouterr().err)
  monkeypatch.undo()
  assert all(speed is not None and speed.decode > 0 for speed in compared([first, second]))
  # what it computes with is plain then, or else its process would end
  monkeypatch.setenv("EXO_LLAMA_CPP", str(path))
  write_shaped(tmp_path / "tiny.gguf", TINY, "Q8_0")
  stages = Stages("llama_cpp", open_checkpoint(tmp_path / "tiny.gguf"))
  assert np.isfinite(stages.step([(0, 0, [5, 6, 7])], LogitsOf.LAST)).all()


@needs_compiler
@pytest.mark.parametrize("fate", FATES)
def test_a_native_library_that_does_not_live_through_decodes_of_several_rows_is_put_aside(
    fate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
  """And the next in order is taken."""
  if WHEEL is None:
    pytest.skip("xllamacpp is not installed")
  library_choice._tell.cache_clear()
  before_decode, after, words = FATES[fate]
  path = shim(tmp_path, before_decode, after)
  monkeypatch.syspath_prepend(str(tmp_path))
  first, second = libraries()
  assert first.file.path == path and second.file == WHEEL and not second.missing
  if words is None:
    assert not first.missing and chosen_library() == first
    return
  assert re.search(words, first.missing)
  assert chosen_library() == second
  assert "a library of llama.cpp is put aside: libllama.so" in capsys.readouterr().err
  assert next(library_lines([first, second])).startswith("put aside: libllama.so")
  monkeypatch.setenv("EXO_LLAMA_CPP", str(path))  # one that is named has no next
  with pytest.raises(EngineUnavailableError, match="has no library that works: libllama.so"):
    chosen_library()


def test_what_a_native_library_brings_is_measured_where_there_are_two() -> None:
  if WHEEL is None:
    pytest.skip("xllamacpp is not installed")
  library = tried(WHEEL)
  (line, ) = comparison_lines([library, library])
  assert re.search(r"measured here on one core: \d+\.\d\d times the tokens .* \d+\.\d\d times in prompts", line), line


def test_without_a_native_library_it_is_said_what_the_wheel_leaves_unused(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr("exo.cli.engine_command.processor_instructions", lambda: ("AVX2", "AVX512", "AMX_INT8"))
  library = Library(
      LibraryFile(Path("/x/xllamacpp.abi3.so"), "xllamacpp", "1"), "", "0.6", ("AVX2", "OPENMP", "REPACK")
  )
  (line, ) = comparison_lines([library])
  assert "also has AVX512, AMX_INT8: what they bring is measured once `exo engine build`" in line
  assert list(library_lines([library])
              ) == ["llama.cpp is xllamacpp 1 (llama.cpp 0.6, /x/xllamacpp.abi3.so)", "  for AVX2"]


@pytest.mark.parametrize(("text", "found"), [
    ("model name\t: x\nflags\t\t: fpu avx avx2 fma f16c bmi2 avx512f avx512cd avx512vl avx512dq avx512bw amx_tile amx_int8\n",
     ("AVX", "AVX2", "F16C", "FMA", "BMI2", "AVX512", "AMX_INT8")),
    ("flags\t\t: avx avx512f\n", ("AVX", )),
    ("Features\t: fp asimd asimddp i8mm\n", ("NEON", "DOTPROD", "MATMUL_INT8")),
    ("nothing\n", ()),
])  # yapf: disable
def test_instructions_are_named_as_the_library_names_them(text: str, found: tuple[str, ...], tmp_path: Path) -> None:
  (tmp_path / "cpuinfo").write_text(text)
  assert processor_instructions(tmp_path / "cpuinfo") == found
  assert processor_instructions(tmp_path / "missing") == ()


def test_doctor_and_engine_say_which_library_is_used(tmp_path: Path) -> None:
  used = chosen_library()
  for command in ("doctor", "engine"):
    done = exo(tmp_path, command, *(("--listen-port", "0") if command == "doctor" else ()))
    assert done.returncode == 0, done.stdout
    assert f"llama.cpp is {used.file} (" in done.stdout and used.version in done.stdout
    assert used.instructions[0] in done.stdout
    assert "measured" in done.stdout
