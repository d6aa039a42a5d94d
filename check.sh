#!/usr/bin/env bash
# Format, lint, types and tests; with --slow also the tests that take minutes.
set -euo pipefail
cd "$(dirname "$0")"
ruff format --check .
ruff check .
mypy
if [ "${1:-}" = --slow ]; then pytest -m "slow or not slow"; else pytest; fi
