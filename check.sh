#!/usr/bin/env bash
# Format, lint, types and tests; with --slow also the tests that take minutes.
set -euo pipefail
cd "$(dirname "$0")"
ruff format --check .
ruff check .
mypy
# Two processes, each of which starts with half of the files: most fixtures are made once.
if [ "${1:-}" = --slow ]; then marks=(-m "slow or not slow"); else marks=(); fi
pytest --numprocesses 2 --dist worksteal "${marks[@]}"
