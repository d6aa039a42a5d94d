#!/usr/bin/env bash
# Builds the site into docs/_build/html (pip install -e '.[docs]'); a warning, so a broken link, is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
# Compiles faster, to the same mathematics; see tests/xla_flags.py.
export XLA_FLAGS="${XLA_FLAGS---xla_backend_optimization_level=0}"
JAX_PLATFORMS=cpu python -m sphinx -W --keep-going -b html docs docs/_build/html "$@"
