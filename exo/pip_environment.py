"""The environment of a pip that exo runs."""

from __future__ import annotations

import os
from pathlib import Path

from exo.certificates import bundle

# what is fetched is asked for once: a second copy in the user's cache helps nobody
_NO_CACHE: dict[str, str] = {} if "PIP_CACHE_DIR" in os.environ else {"PIP_NO_CACHE_DIR": "1"}


def pip_environment(scratch: Path, temporary: Path) -> dict[str, str]:
  """For one that works in `temporary`, and trusts what everything else here trusts; older ones look at the second variable."""
  environment = _NO_CACHE | os.environ | {"TMPDIR": str(temporary)}
  trusted = bundle()
  if not trusted:
    return environment
  path = scratch / "certificates.pem"
  path.write_text(trusted)
  return environment | {"SSL_CERT_FILE": str(path), "REQUESTS_CA_BUNDLE": str(path)}
