#!/usr/bin/env bash
# Set up everything that the tests need and run them all: formatting, lint, types, and the suite.
# Arguments go to pytest: scripts/test.sh -m slow, scripts/test.sh test/test_api.py -k stream.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/test-deps.sh
. ./install.sh test clients

python format.py --check ./exo ./test ./scripts
ruff check .
mypy
# two workers, a file each at a time: most tests wait for nodes, and those of one file may share them
python -m pytest -n 2 --dist loadfile "$@"
