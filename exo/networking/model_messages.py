"""Questions about the files of models, and what nodes give each other of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FindModel:
  """Which files does this model have, as you hold it?"""
  model_id: str


@dataclass(frozen=True, slots=True)
class ModelFound:
  """`manifest_json` is empty where the node holds nothing of the model."""
  manifest_json: str = ""


@dataclass(frozen=True, slots=True)
class ListModels:
  """Which models do you hold something of? Of this one alone where one is named."""
  model_id: str = ""


@dataclass(frozen=True, slots=True)
class ModelsListed:
  """`models_json` is a list of `HeldModel`."""
  models_json: str = "[]"


@dataclass(frozen=True, slots=True)
class FindBlocks:
  """Which bytes of these files (name, identity) do you have?"""
  model_id: str
  files: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class BlocksFound:
  """By file, spans [start, end) of whole blocks."""
  files: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]


@dataclass(frozen=True, slots=True)
class ReadRange:
  """Give me bytes [start, end) of a file. Travels, with its answer, on the bulk stream."""
  model_id: str
  name: str
  identity: str
  start: int
  end: int


@dataclass(frozen=True, slots=True)
class RangeData:
  """`digests` holds the SHA-256 of each block of `data`, one after the other."""
  data: bytes
  digests: bytes


@dataclass(frozen=True, slots=True)
class DownloadNews:
  """How far a download of the sender's has come; the fields are those of `DownloadProgress`."""
  model_id: str
  downloaded_bytes: int
  total_bytes: int
  done: bool
  bytes_per_s: float
  from_peers_bytes: int
  from_hub_bytes: int
  error: str
  status: str
