"""Write the hashes of a file's blocks to where exo looks for them: python scripts/pin_blocks.py FILE

For a file whose SHA-256 the registry pins. Prints the path; the same file always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from exo.download.pinned_blocks import FOLDER, shortened
from exo.inference.weights.block_map import block_bytes, digests_of


def main() -> None:
  if len(sys.argv) != 2:
    raise SystemExit(__doc__)
  path = Path(sys.argv[1])
  block, whole, digests = block_bytes(path.stat().st_size), hashlib.sha256(), b""
  with path.open("rb") as file:
    while data := file.read(block * 64):
      whole.update(data)
      digests += digests_of(data, block)
  FOLDER.mkdir(exist_ok=True)
  target = FOLDER / f"{whole.hexdigest()}.blocks"
  target.write_bytes(shortened(digests))
  print(f"{target}: {len(digests) // 32} blocks of {block} bytes")


if __name__ == "__main__":
  main()
