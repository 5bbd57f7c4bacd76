#!/usr/bin/env bash
# The API with nothing but curl: models, an answer, a streamed answer, the ring.
#   examples/curl.sh [URL [MODEL]]      EXO_API_KEY, where the node asks for one
set -euo pipefail
url=${1:-http://localhost:52415} model=${2:-smollm2-135m}
auth=(); [ -n "${EXO_API_KEY:-}" ] && auth=(-H "Authorization: Bearer $EXO_API_KEY")
ask() { curl --silent --show-error --fail-with-body ${auth[@]+"${auth[@]}"} "$@"; }

echo "--- models"
ask "$url/v1/models" | head -c 300; echo

echo "--- an answer"
ask "$url/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "'"$model"'", "max_tokens": 40, "messages": [{"role": "user", "content": "What is the sea?"}]}'; echo

echo "--- the same, streamed"
ask --no-buffer "$url/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "'"$model"'", "max_tokens": 40, "stream": true, "messages": [{"role": "user", "content": "What is the sea?"}]}'

echo "--- the ring"
ask "$url/v1/topology" | head -c 600; echo
