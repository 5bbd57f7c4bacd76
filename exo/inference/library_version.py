"""The version of an installed package, by its files: nothing is imported."""

from __future__ import annotations

from importlib import metadata


def library_version(package: str) -> str:
  """"" where nothing says it."""
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return ""
