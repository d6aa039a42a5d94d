#!/usr/bin/env bash
# What nasi-jax does on one GPU, in at most 8 minutes: on_device.py, with what pack_for_device.sh
# packed. Takes its flags and names of parts; runs where nothing can be downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
packed=.device
export PYTHONUNBUFFERED=1
if compgen -G "$packed/wheels/*.whl" > /dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --disable-pip-version-check --root-user-action ignore --target "$site" "$packed"/wheels/*.whl
    # The package as the checkout has it; what was packed says its version alone.
    export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
fi
data=digits
if [ -f "$packed/images.npz" ]; then data=$packed/images.npz; fi
"$python" benchmarks/on_device.py --data "$data" --out "${OUT:-runs/on_device}" "$@"
