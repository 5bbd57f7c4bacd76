"""Requirements 6 to 8 of the security list: what a malicious repository or mirror may try."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from exo.download.manifest import check_revision, inside, manifest_from_json
from exo.errors import DownloadError, ExoError, ModelFilesError, ModelNotFoundError, UnsupportedModelError
from exo.inference.chat_template import render_chat
from exo.inference.model_config import ModelConfig
from exo.inference.weights.gguf_header import parse_gguf_header
from exo.inference.weights.safetensors_checkpoint import parse_safetensors_header
from exo.models import card_of
from test.support.hub import Hub
from test.support.stores import hub_here, store

REPO = "org/evil"
CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 256,
    "intermediate_size": 64
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
  folder = tmp_path / "evil"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(CONFIG))
  save_file({"model.layers.0.a": np.zeros((4, 4), np.float32)}, folder / "model.safetensors")
  return folder


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[Hub]:
  with hub_here({REPO: folder}, tmp_path) as playing:
    yield playing


def pull(home: Path) -> Path:
  async def work() -> Path:
    one = store(home)
    try:
      return await one.fetch(one.find(REPO))
    finally:
      await one.close()

  return asyncio.run(work())


def everything_under(folder: Path) -> set[str]:
  return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# requirement 6


@pytest.mark.parametrize(
    "name", [
        "../evil.json", "a/../../evil.json", "/etc/evil.json", "..\\evil.json", "a\\b.json", "a\0.json", "a//b.json",
        "file://x.json", "C:evil.json", "~/evil.json", "https://host/model.safetensors"
    ]
)
def test_requirement_6_names_that_lead_elsewhere_are_refused(server: Hub, tmp_path: Path, name: str) -> None:
  server.faults.siblings = [{"rfilename": "config.json", "size": 2}, {"rfilename": name, "size": 10}]
  with pytest.raises(ModelFilesError, match="outside"):
    pull(tmp_path / "home")
  assert len(server.requests) == 1 and everything_under(tmp_path / "home") <= {"org--evil/.lock"}


@pytest.mark.parametrize("target", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "a\\b", 7, None])
def test_requirement_6_weight_maps_are_checked_too(server: Hub, folder: Path, tmp_path: Path, target: object) -> None:
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.layers.0.a": target}}))
  with pytest.raises(ModelFilesError, match="outside the repository's folder"):
    pull(tmp_path / "home")


def test_requirement_6_only_known_kinds_of_files_are_fetched(server: Hub, folder: Path, tmp_path: Path) -> None:
  for name in ("pytorch_model.bin", "x.pt", "x.pkl", "modeling.py", "x.so", ".hidden.json", "README.md", "x.tar.gz"):
    (folder / name).write_text("evil")
  (folder / "notes.txt").write_text("fine")
  path = pull(tmp_path / "home")
  assert {file.name
          for file in path.iterdir() if file.is_file()} == {"config.json", "model.safetensors", "notes.txt", ".lock"}


def test_requirement_6_a_repository_of_pickles_alone_says_so(server: Hub, folder: Path, tmp_path: Path) -> None:
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
  with pytest.raises(DownloadError, match="no weights that exo reads"):
    pull(tmp_path / "home")


@pytest.mark.parametrize(
    "name", [
        "../x/y", "a/b/c", "a//b", "org/..", "org/na me", "org/x\0", "https://h/x", "org/x.git", "-a/b", "org/x@../y",
        "org/x:../../y", "org/" + "x" * 200
    ]
)
def test_requirement_6_ids_and_revisions_match_a_strict_pattern(tmp_path: Path, name: str) -> None:
  assert card_of(name) is None
  with pytest.raises(ModelNotFoundError):
    store(tmp_path).find(name)


def test_requirement_6_revisions_and_links(tmp_path: Path) -> None:
  for revision in ("../x", "a b", "", "x" * 500, "a//b", "refs/..", "\0"):
    with pytest.raises(DownloadError):
      check_revision(revision)
  assert check_revision("refs/pr/1") and check_revision("v1.0")
  home = tmp_path / "home"
  home.mkdir()
  (home / "link").symlink_to(tmp_path)
  with pytest.raises(ModelFilesError, match="outside"):
    inside(home, "link/model.gguf")


@pytest.mark.parametrize(
    "text", [
        "", "[]", "{}", '{"model_id":"a","source":"b","revision":"c","files":[{"name":"../x.json","size":1}]}',
        '{"model_id":"a","source":"b","revision":"c","files":[{"name":"x.json","size":-1}]}',
        '{"model_id":"a","source":"b","revision":"c","files":[{"name":"x.json","size":1,"sha256":"zz"}]}',
        '{"model_id":"a","source":"b","revision":"c","files":[{"name":"x.json","size":1},{"name":"x.json","size":1}]}',
        '{"model_id":"a","source":"b","revision":3,"files":[]}', "[" * 100_000
    ]
)
def test_requirement_6_lists_of_files_from_peers_are_checked(text: str) -> None:
  with pytest.raises(ModelFilesError):
    manifest_from_json(text)


# requirement 7


@pytest.mark.parametrize("extra", [{"auto_map": {"AutoModel": "modeling.Evil"}}, {"trust_remote_code": True}])
def test_requirement_7_code_of_a_repository_is_refused_by_name(
    server: Hub, folder: Path, tmp_path: Path, extra: dict[str, Any]
) -> None:
  (folder / "config.json").write_text(json.dumps(CONFIG | {"model_type": "evil"} | extra))
  with pytest.raises(UnsupportedModelError, match=r"org/evil wants to run code of its own"):
    pull(tmp_path / "home")
  assert server.sent["model.safetensors"] == 0


def test_requirement_7_nothing_in_the_project_trusts_remote_code() -> None:
  import exo
  for path in Path(exo.__file__).parent.rglob("*.py"):
    assert "trust_remote_code=True" not in path.read_text().replace(" ", ""), path


@pytest.mark.parametrize(
    "template", [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.__init__.__globals__ }}",
        "{% for i in range(10**9) %}x{% endfor %}", "{% include '/etc/passwd' %}",
        "{{ cycler.__init__.__globals__.os.popen('id') }}", "x" * (2 << 20), "{{ 'x' * 10**10 }}",
        "{% for a in 'x' * 9999 %}{% for b in 'x' * 9999 %}{% for c in 'x' * 9999 %}{% endfor %}{% endfor %}{% endfor %}",
        "{{ 9 ** 9999999 }}", "{{ 'x'.ljust(10**10) }}", "{{ 'x' | center(10**10) }}", "{{ '%9999999999d' % 1 }}",
        "{{ '{:>9999999999}'.format(1) }}", "{% set x = 'x' * 9999 %}" + "{% set x = x ~ x %}" * 40,
        "{{ 'x' | indent(10**10) }}",
        "{% macro m() %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endmacro %}{{ m() }}",
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('x', ns.x) %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"
    ]
)
def test_requirement_7_templates_run_in_a_sandbox_with_bounds(template: str) -> None:
  with pytest.raises(ExoError):
    text = render_chat(template, [{"role": "user", "content": "hi"}], special_tokens={})
    raise AssertionError(f"it rendered {text[:200]!r}")


# requirement 8


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
  raw = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
  return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BAD_SAFETENSORS = {
    "no header": b"",
    "short": b"\1\0\0",
    "huge header": struct.pack("<Q", 1 << 60),
    "header beyond the file": safetensors({}, length=1000),
    "not json": safetensors(b"{nonsense"),
    "not an object": safetensors([1]),
    "nested": safetensors(b"[" * 50_000),
    "beyond the file": safetensors({"a": entry([4], 0, 16)}, bytes(8)),
    "overlap": safetensors({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, bytes(24)),
    "shape contradicts": safetensors({"a": entry([5], 0, 16)}, bytes(16)),
    "negative": safetensors({"a": entry([-4], 0, 16)}, bytes(16)),
    "overflow": safetensors({"a": entry([1 << 62, 4], 0, 16)}, bytes(16)),
    "unknown type": safetensors({"a": entry([4], 0, 16, "PICKLE")}, bytes(16)),
    "reversed": safetensors({"a": entry([4], 16, 0)}, bytes(16)),
}


@pytest.mark.parametrize("kind", BAD_SAFETENSORS)
def test_requirement_8_safetensors_headers(server: Hub, folder: Path, tmp_path: Path, kind: str) -> None:
  data = BAD_SAFETENSORS[kind]
  with pytest.raises(ModelFilesError):
    parse_safetensors_header(memoryview(data), len(data), "model.safetensors")
  (folder / "model.safetensors").write_bytes(data)
  with pytest.raises(ModelFilesError):
    pull(tmp_path / "home")
  assert not (tmp_path / "home" / "org--evil" / ".exo" / "manifest.json").exists()  # nothing of it counts as a model


def gguf_string(text: str) -> bytes:
  return struct.pack("<Q", len(text)) + text.encode()


def gguf(
    tensors: list[bytes],
    keys: Sequence[bytes] = (),
    data: bytes = b"",
    counts: tuple[int, int] | None = None
) -> bytes:
  n_tensors, n_keys = counts or (len(tensors), len(keys))
  head = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + b"".join(keys) + b"".join(tensors)
  return head + bytes(-len(head) % 32) + data


def gguf_tensor(name: str, shape: list[int], kind: int, offset: int) -> bytes:
  dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
  return gguf_string(name) + dims + struct.pack("<IQ", kind, offset)


BAD_GGUF = {
    "not gguf": b"PK\3\4" + bytes(100),
    "cut off": b"GGUF\3\0\0\0",
    "a billion tensors": gguf([], counts=(1 << 40, 0)),
    "a billion keys": gguf([], counts=(0, 1 << 40)),
    "huge string": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 62),
    "huge array": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string("k") + struct.pack("<IIQ", 9, 8, 1 << 60),
    "beyond the file": gguf([gguf_tensor("a", [8], 0, 0)], data=bytes(8)),
    "overlap": gguf([gguf_tensor("a", [8], 0, 0), gguf_tensor("b", [8], 0, 16)], data=bytes(64)),
    "twice": gguf([gguf_tensor("a", [8], 0, 0), gguf_tensor("a", [8], 0, 32)], data=bytes(64)),
    "unknown encoding": gguf([gguf_tensor("a", [8], 99, 0)], data=bytes(64)),
    "impossible shape": gguf([gguf_tensor("a", [1 << 40, 1 << 40], 0, 0)], data=bytes(64)),
    "nine dimensions": gguf([gguf_tensor("a", [1] * 9, 0, 0)], data=bytes(64)),
    "no whole blocks": gguf([gguf_tensor("a", [7], 2, 0)], data=bytes(64)),
}


@pytest.mark.parametrize("kind", BAD_GGUF)
def test_requirement_8_gguf_headers(server: Hub, folder: Path, tmp_path: Path, kind: str) -> None:
  data = BAD_GGUF[kind]
  with pytest.raises(ModelFilesError):
    parse_gguf_header(memoryview(data), len(data))
  (folder / "model.safetensors").unlink()
  (folder / "model.gguf").write_bytes(data)
  with pytest.raises(ModelFilesError):
    pull(tmp_path / "home")
  assert not (tmp_path / "home" / "org--evil" / ".exo" / "manifest.json").exists()


@pytest.mark.parametrize(
    "changed",
    [{"num_hidden_layers": 1 << 40}, {"hidden_size": -1}, {"vocab_size": "many"}, {"num_attention_heads": 0}, {
        "head_dim": 1e9
    }, {"max_position_embeddings": 1 << 60}, {"num_key_value_heads": True}, {"sliding_window": 1 << 60}]
)
def test_requirement_8_numbers_of_the_configuration(changed: dict[str, Any]) -> None:
  with pytest.raises(ModelFilesError):
    ModelConfig.from_hf(CONFIG | changed)


@pytest.mark.parametrize("size", [-1, 1 << 60, "12", True, 1.5])
def test_requirement_8_sizes_of_files(server: Hub, tmp_path: Path, size: object) -> None:
  server.faults.siblings = [{"rfilename": "config.json", "size": 2}, {"rfilename": "model.safetensors", "size": size}]
  with pytest.raises(ExoError):
    pull(tmp_path / "home")
