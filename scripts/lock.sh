#!/usr/bin/env bash
# Write requirements.lock anew: the newest versions that pyproject.toml allows, for every platform at once (needs uv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv pip compile --universal --python-version 3.12 --extra test --extra clients --extra formatting --no-emit-package exo --no-header \
  --no-emit-index-url --no-emit-find-links --custom-compile-command scripts/lock.sh pyproject.toml -o requirements.lock "$@"
{
  echo "# Made by scripts/lock.sh from pyproject.toml; install.sh installs exactly these versions."
  cat requirements.lock
  echo "pip==$(python -m pip --version | cut -d' ' -f2)"
} >requirements.lock.new
mv requirements.lock.new requirements.lock
