#!/usr/bin/env bash
# The wire itself: sh examples/embed.sh [http://127.0.0.1:8000/v1]
set -eu
base_url=${1:-http://127.0.0.1:8000/v1}

curl --fail --silent --show-error "$base_url/embeddings" \
    --header 'Content-Type: application/json' \
    --data '{"model": "text-embedding-3-small", "input": ["A first text.", "And a second one."]}'
