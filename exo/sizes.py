"""Sizes for people, in one form everywhere: of files, memory and transfers alike, 1 GB is 1024 MB and 1 MB is 2**20 bytes."""

from __future__ import annotations

MB = 2**20
_UNITS = ("B", "KB", "MB", "GB", "TB")


def shown_bytes(count: float) -> str:
  """`98 MB`, `1.5 GB`: whole below a GB, with one decimal from there to a hundred."""
  unit = 0
  while round(count) >= 1024 and unit + 1 < len(_UNITS):
    count, unit = count / 1024, unit + 1
  digits = 1 if unit >= _UNITS.index("GB") and count < 99.95 else 0
  return f"{count:.{digits}f} {_UNITS[unit]}"


def shown_mb(mb: float) -> str:
  """The same of memory, which is counted in MB."""
  return shown_bytes(mb * MB)


def shown_seconds(seconds: float) -> str:
  """`40 s`, `3 min 20 s`, `2 h 5 min`."""
  whole = max(0, round(seconds))
  if whole < 60:
    return f"{whole} s"
  minutes, rest = divmod(whole, 60)
  return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
