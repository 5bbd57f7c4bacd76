"""Repositories as they are: indexes that name other files, marks before JSON, something else under the name of weights, templates' tags."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exo.errors import InvalidRequestError, ModelFilesError
from exo.inference.chat_template import render_chat
from exo.inference.gguf_tokenizer import gguf_tokenizer
from exo.inference.hf_tokenizer import hf_tokenizer
from exo.inference.weights.checkpoint import open_checkpoint
from test.support.gguf_words import write_words
from test.support.hub import hub
from test.support.nodes import ring

INDEX = "model.safetensors.index.json"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1234567\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>" + b" " * 200 + b"</body></html>"


@pytest.fixture
def folder(goldens: Path, tmp_path: Path) -> Path:
  """Two shards, of an index that tells of three, as a conversion leaves it."""
  target = tmp_path / "models" / "odd"
  shutil.copytree(goldens / "llama", target)
  tensors = load_file(target / "model.safetensors")
  (target / "model.safetensors").unlink()
  names = sorted(tensors)
  for i, some in enumerate((names[::2], names[1::2]), 1):
    save_file({name: tensors[name] for name in some}, target / f"model-{i:05d}-of-00002.safetensors")
  of = {name: f"model-{1 + i % 3:05d}-of-00003.safetensors" for i, name in enumerate(names)}
  (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": of}))
  return target


def test_issue_20_line_6_an_index_may_name_files_that_are_not_there_if_all_tensors_are(
    folder: Path, goldens: Path
) -> None:
  expected, found = open_checkpoint(goldens / "llama"), open_checkpoint(folder)
  assert found.fingerprint == expected.fingerprint
  for name in expected.names():
    assert np.array_equal(found.tensor(name).to_float32(), expected.tensor(name).to_float32())
  (folder / "._model-00001-of-00002.safetensors").write_bytes(b"what macOS leaves")
  open_checkpoint(folder).close()
  next(folder.glob("model-00001*")).unlink()
  with pytest.raises(ModelFilesError, match=r"odd lacks model-00001-of-00003\.safetensors"):
    open_checkpoint(folder)


def test_issue_20_line_6_such_a_repository_is_fetched_from_a_hub(folder: Path, tmp_path: Path) -> None:
  with hub({"org/odd": folder}) as server:
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""}
    with ring(tmp_path / "home", 1, env=env) as (node, ):
      body = {"model": "org/odd", "prompt": "t5 t7", "max_tokens": 3, "temperature": 0}
      status, answer = node.post("/v1/completions", body)
      assert status == 200 and answer["usage"]["completion_tokens"], answer
    next(folder.glob("model-00002*")).unlink()
    with ring(tmp_path / "other", 1, env=env) as (node, ):
      status, answer = node.post("/v1/completions", body)
      assert status >= 400 and "lacks model-0000" in answer["error"]["message"], answer


@pytest.mark.parametrize(("content", "words"), [(LFS, "pointer of git LFS"), (PAGE, "a web page, not weights")])
def test_issue_20_line_6_something_else_under_the_name_of_weights_is_told_as_what_it_is(
    content: bytes, words: str, folder: Path, tmp_path: Path
) -> None:
  (tmp_path / "m.gguf").write_bytes(content)
  with pytest.raises(ModelFilesError, match=words):
    open_checkpoint(tmp_path / "m.gguf")
  next(folder.glob("model-00001*")).write_bytes(content)
  with pytest.raises(ModelFilesError, match=f"model-00001-of-00002.safetensors is .*{words}"):
    open_checkpoint(folder)
  with hub({"org/odd": folder}) as server:
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""}
    with ring(tmp_path / "home", 1, env=env) as (node, ):
      status, answer = node.post("/v1/completions", {"model": "org/odd", "prompt": "t5", "max_tokens": 1})
      assert status >= 400 and words in answer["error"]["message"], answer


def test_issue_20_line_6_marks_before_json_and_templates_are_no_part_of_them(folder: Path) -> None:
  before = hf_tokenizer(folder)
  (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
  for name in ("config.json", "tokenizer_config.json", INDEX, "chat_template.jinja"):
    path = folder / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
  found = open_checkpoint(folder).tokenizer()
  assert found.bos_id == before.bos_id and found.eos_ids == before.eos_ids
  assert found.render_chat([{"role": "user", "content": "t5"}]) == "t5"


def test_issue_20_line_6_templates_of_transformers_render() -> None:
  def rendered(source: str, **more: object) -> str:
    return render_chat(source, [{"role": "user", "content": "a"}], special_tokens={}, extra=more)

  source = "{% for m in messages %}{% generation %}[{{ m.content }}]{% if true %}!{% endif %}{% endgeneration %}{% endfor %}"
  assert rendered(source) == "[a]!"
  value = {"b": [1, 2], "a": "é"}
  assert rendered("{{ v | tojson(separators=(',', ':'), sort_keys=true) }}", v=value) == '{"a":"é","b":[1,2]}'
  assert rendered("{{ v | tojson(indent=1, ensure_ascii=true) }}", v={"a": "é"}) == '{\n "a": "\\u00e9"\n}'
  with pytest.raises(InvalidRequestError):  # a separator is no way around the bounds
    rendered("{% set s = 'x' * 1000000 %}{{ v | tojson(separators=(s, s)) }}", v=list(range(100_000)))


@pytest.mark.parametrize("form", ["list", "dict", "file", "gguf"])
def test_issue_20_line_6_a_template_of_its_own_for_tools_is_used_with_tools(
    form: str, folder: Path, tmp_path: Path
) -> None:
  default, tool_use = "plain {{ messages[0].content }}", "{{ tools[0].name }} {{ messages[0].content }}"
  if form == "gguf":
    meta = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.token_type": [1, 1, 1], "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.chat_template": default, "tokenizer.chat_template.tool_use": tool_use
    }  # yapf: disable
    tokenizer = gguf_tokenizer(meta, write_words(tmp_path / "m.gguf", meta))
  else:
    path = folder / "tokenizer_config.json"
    config, named = json.loads(path.read_text()), {"tool_use": tool_use, "default": default}
    if form == "file":
      (folder / "chat_template.jinja").write_text(default)
      (folder / "additional_chat_templates").mkdir()
      (folder / "additional_chat_templates" / "tool_use.jinja").write_text(tool_use)
    else:
      listed = [{"name": name, "template": text} for name, text in named.items()]
      path.write_text(json.dumps(config | {"chat_template": listed if form == "list" else named}))
    tokenizer = hf_tokenizer(folder)
  messages = [{"role": "user", "content": "hi"}]
  assert tokenizer.render_chat(messages) == "plain hi"
  assert tokenizer.render_chat(messages, [{"name": "look"}]) == "look hi"
