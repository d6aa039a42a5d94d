#!/usr/bin/env bash
# Format, lint, types and tests; with --slow also those of minutes, with --nightly all tests.
set -euo pipefail
cd "$(dirname "$0")"
ruff format --check .
ruff check .
# On one Python alone: on others pip finds other releases of what is used, with other types.
if python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
  mypy
else
  echo "types are checked on Python 3.11 alone"
fi
# Two processes, each of which starts with half of the files: most fixtures are made once.
case "${1:-}" in
  --slow) marks=(-m "not nightly") ;;
  --nightly) marks=(-m "") ;;
  *) marks=() ;;
esac
pytest --numprocesses 2 --dist worksteal "${marks[@]}"
