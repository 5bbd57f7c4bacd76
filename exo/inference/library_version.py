"""The version of an installed package, by its files: nothing is imported."""

from __future__ import annotations

import functools
from importlib import metadata


@functools.cache
def library_version(package: str) -> str:
  """"" where nothing says it."""
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return ""
