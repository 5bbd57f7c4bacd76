"""Model stores inside the test's own process, pointed at a fake hub, alone or as neighbours of each other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from exo.download.manifest import Manifest, RepoFile
from exo.download.model_store import DownloadOptions, ModelStore
from exo.download.neighbours import Held, RangeRead
from exo.download.retry import RetryPolicy
from exo.inference.weights.block_map import BlockMap, digests_of, map_path
from exo.networking.messages import Message
from exo.networking.model_messages import FindBlocks, FindModel, ReadRange
from exo.orchestration.model_sharing import ModelSharing
from test.support.hub import COMMIT, Hub, git_oid_of, hub, sha256_of

# A test that is about silence names a short `stall_s`; to the others a busy machine is not a silent hub.
QUICK = RetryPolicy(attempts=4, connect_attempts=2, pause_s=0.01, max_pause_s=0.2, connect_s=10, stall_s=30)


@contextmanager
def hub_here(repos: dict[str, Path], home: Path) -> Iterator[Hub]:
  """A fake hub that this very process takes for the real one; nothing of the user's own settings is used."""
  from huggingface_hub import constants
  with hub(repos) as server, pytest.MonkeyPatch.context() as patch:
    patch.setattr(constants, "ENDPOINT", server.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hf-cache"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "hf-token"))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
      patch.delenv(name, raising=False)
    yield server


def store(home: Path, *, retry: RetryPolicy = QUICK, **options: object) -> ModelStore:
  return ModelStore(home, options=DownloadOptions(retry=retry, **options))  # type: ignore[arg-type]


@dataclass
class Ring:
  """Stores that are each other's neighbours without a network between them; `down` ones do not answer."""
  stores: dict[str, ModelStore]
  down: set[str] = field(default_factory=set)
  reads: list[tuple[str, str, int, int]] = field(default_factory=list)
  corrupt: set[str] = field(default_factory=set)

  def __post_init__(self) -> None:
    self.sharing: dict[str, ModelSharing] = {}
    for name, one in self.stores.items():
      self.sharing[name] = ModelSharing(
          one,
          lambda name=name: [n for n in self.stores if n != name],
          lambda node_id, message: None,
          self._call,
          lambda: False
      )

  async def _call(self, node_id: str, message: Message, timeout_s: float) -> Message:
    from exo.errors import PeerLostError
    from exo.networking.model_messages import RangeData
    if node_id in self.down:
      raise PeerLostError(f"{node_id} is gone")
    assert isinstance(message, FindModel | FindBlocks | ReadRange)
    answer = await self.sharing[node_id].answer(message)
    if isinstance(message, ReadRange) and isinstance(answer, RangeData):
      self.reads.append((node_id, message.name, message.start, message.end))
      if node_id in self.corrupt:
        return RangeData(bytes([answer.data[0] ^ 1]) + answer.data[1:], answer.digests)
    return answer


class DeadEnd:
  """A neighbour that promises everything and gives nothing."""
  def __init__(self, manifest: Manifest) -> None:
    self.manifest = manifest

  async def manifests(self, model_id: str) -> Mapping[str, Manifest]:
    return {"liar": self.manifest}

  async def held(self, manifest: Manifest, files: Sequence[RepoFile]) -> Held:
    return {"liar": {file.name: [(0, file.size)] for file in files}}

  async def read(self, node_id: str, manifest: Manifest, file: RepoFile, start: int, end: int) -> RangeRead:
    return RangeRead(b"", b"")


def write_big(folder: Path, megabytes: int, name: str = "model.safetensors") -> Path:
  """A folder with a checkpoint of that size, random bytes in four layers; no engine could make sense of it."""
  import json
  folder.mkdir(parents=True, exist_ok=True)
  random = np.random.default_rng(megabytes)
  rows = megabytes * 2**20 // 4 // 1024
  tensors = {f"model.layers.{i}.mlp.up_proj.weight": random.integers(0, 255, (rows, 1024), np.uint8) for i in range(4)}
  save_file(tensors, folder / name)
  config = {
      "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 256,
      "intermediate_size": 64
  }
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def held_by(home: Path, model_id: str, files: Path, listed: Path | None = None, revision: str = COMMIT) -> Path:
  """A store's folder of a hub's model as if it had been fetched there: the bytes of `files`, with maps that agree with
  them, under the names, sizes and hashes of `listed`, or of the very files where that is None."""
  folder = home / model_id.replace("/", "--")
  (folder / ".exo").mkdir(parents=True, exist_ok=True)
  entries = []
  for path in sorted(files.iterdir()):
    shutil.copy(path, folder / path.name)
    told = (listed or files) / path.name
    hashes = {"sha256": sha256_of(told)} if path.suffix in (".safetensors", ".gguf") else {"git_oid": git_oid_of(told)}
    entries.append(RepoFile(path.name, path.stat().st_size, **hashes))
  manifest = Manifest(model_id, model_id, revision, tuple(entries))
  (folder / ".exo" / "manifest.json").write_text(manifest.to_json())
  for entry in manifest.weights:
    path = folder / entry.name
    made = BlockMap.create(map_path(path), entry.size, manifest.identity(entry))
    made.mark(0, digests_of(path.read_bytes(), made.block))
    made.stamp(path.stat().st_mtime_ns, verified=True)
  return folder
